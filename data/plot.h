/* Plots as inline SVG for a page of HTML: no script, nothing loaded, and well-formed as XML too.
 *
 *   Plot p = plot_begin(f, "Learning", plot_axis("step", 0, 1000), plot_axis_round("m", 0, 93),
 * 220); plot_line(&p, "model", n, x, y); plot_end(&p, (PlotKey[]){{"model", "the model", 0}, {0}},
 * "The error falls.");
 *
 * writes a <figure> of a heading, an <svg> with axes and grid, keys and a caption. The drawing is
 * 480 units wide, text 13 high, and scales with its column.
 *
 * Colours and dashes are the style sheet's of the page. What is drawn has two classes, "line" or
 * "fill" and the one that the caller names ("model"); the grid's is "grid", the zero line's and
 * frame's "frame", the keys' paragraph "keys".
 *
 * x and y are in the axes' units. Points with a coordinate that is not finite are left out, and
 * break a line. Titles, labels and captions may hold any bytes (plot_text). Numbers are written as
 * the C locale has them, in which a program is unless it calls setlocale. Errors of writing are the
 * stream's (ferror). */
#ifndef DATA_PLOT_H
#define DATA_PLOT_H

#include <stdint.h>
#include <stdio.h>

/* Ticks stand at the multiples of step within lo..hi. */
typedef struct PlotAxis {
    const char *label; /* the quantity and its unit */
    double lo, hi, step;
    const char *const *name; /* NULL, or for step 1 from lo 0: what tick i is called; NULL: none */
} PlotAxis;

typedef struct Plot {
    FILE *f;
    PlotAxis x, y;
    int height; /* of the area between the axes; it is 414 wide */
} Plot;

/* A key: a piece of line, or a square of an opacity above 0. A list of keys ends with one whose
 * name is empty. */
typedef struct PlotKey {
    const char *class;
    char name[48];
    double opacity;
} PlotKey;

enum { PLOT_KEYS = 24 };

/* An axis with four to ten round ticks (1, 2 or 5 times a power of ten). lo and hi finite; where hi
 * is not above lo the axis is made longer. plot_axis_round moves both ends outwards to a tick. */
PlotAxis plot_axis(const char *label, double lo, double hi);
PlotAxis plot_axis_round(const char *label, double lo, double hi);

/* Begins a figure. The axes' texts must live until plot_end. */
Plot plot_begin(FILE *f, const char *title, PlotAxis x, PlotAxis y, int height);

/* A line through n points. */
void plot_line(Plot *p, const char *class, int n, const double *x, const double *y);

/* A dot at each of n points. */
void plot_dots(Plot *p, const char *class, int n, const double *x, const double *y);

/* The area between lo and hi, n points each, all finite. */
void plot_band(Plot *p, const char *class, double opacity, int n, const double *x, const double *lo,
               const double *hi);

/* A bar from y = 0 to y. */
void plot_bar(Plot *p, const char *class, double x0, double x1, double y);

/* A heat map: count (ny, nx), row 0 at the bottom, fills the area between the axes. A cell's
 * opacity says the power of 2, 4 or 10 that its count reaches, so that there are few; an empty cell
 * is left out. keys gets their meaning. */
void plot_cells(Plot *p, const char *class, int nx, int ny, const int64_t *count,
                PlotKey keys[PLOT_KEYS]);

void plot_end(Plot *p, const PlotKey *keys, const char *caption);

/* s as text of HTML and XML, also within double quotes: markup is escaped, control characters and
 * what is not UTF-8 become '?'. */
void plot_text(FILE *f, const char *s);

#endif
