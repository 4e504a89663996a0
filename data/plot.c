#include "data/plot.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "llmc_like/error.h"

enum { WIDTH = 480, LEFT = 48, RIGHT = 18, TOP = 28, BOTTOM = 44, ACROSS = WIDTH - LEFT - RIGHT };

/* ---- Text ---- */

/* Bytes of the character at s if it is UTF-8 and XML allows it, else 0. */
static int character_length(const unsigned char *s) {
    static const unsigned least[] = {0, 0x20, 0x80, 0x800, 0x10000};
    int n = s[0] < 0x80 ? 1 : s[0] < 0xc0 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    unsigned code = n == 1 ? s[0] : s[0] & (0x7fu >> n);
    for (int i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0; /* the 0 at the end, too */
        code = code << 6 | (s[i] & 0x3f);
    }
    bool surrogate = code >= 0xd800 && code < 0xe000, none = code == 0xfffe || code == 0xffff;
    return code < least[n] || code > 0x10ffff || surrogate || none ? 0 : n;
}

void plot_text(FILE *f, const char *s) {
    while (*s) {
        int n = character_length((const unsigned char *)s);
        switch (n ? *s : 0) {
            case 0:
                fputc('?', f);
                break;
            case '&':
                fputs("&amp;", f);
                break;
            case '<':
                fputs("&lt;", f);
                break;
            case '>':
                fputs("&gt;", f);
                break;
            case '"':
                fputs("&quot;", f);
                break;
            default:
                fwrite(s, 1, (size_t)n, f);
        }
        s += n ? n : 1;
    }
}

/* ---- Axes ---- */

PlotAxis plot_axis(const char *label, double lo, double hi) {
    CHECK(isfinite(lo) && isfinite(hi), "the axis '%s' from %g to %g", label, lo, hi);
    if (hi <= lo) hi = lo + fmax(1, fabs(lo));
    double least = (hi - lo) / 8, power = pow(10, floor(log10(least))), share = least / power;
    double step = power * (share <= 1 ? 1 : share <= 2 ? 2 : share <= 5 ? 5 : 10);
    return (PlotAxis){.label = label, .lo = lo, .hi = hi, .step = step};
}

PlotAxis plot_axis_round(const char *label, double lo, double hi) {
    PlotAxis a = plot_axis(label, lo, hi);
    a.lo = floor(a.lo / a.step) * a.step;
    a.hi = ceil(a.hi / a.step) * a.step;
    return a;
}

static double across(const Plot *p, double x) {
    return LEFT + (x - p->x.lo) / (p->x.hi - p->x.lo) * ACROSS;
}

static double down(const Plot *p, double y) {
    return TOP + (p->y.hi - y) / (p->y.hi - p->y.lo) * p->height;
}

static long first_tick(const PlotAxis *a) { return lrint(ceil(a->lo / a->step - 1e-6)); }
static long last_tick(const PlotAxis *a) { return lrint(floor(a->hi / a->step + 1e-6)); }

static void put_tick_text(FILE *f, const PlotAxis *a, long i) {
    double largest = fmax(fabs(a->lo), fabs(a->hi));
    double unit = largest < 1e4 ? 1 : largest < 1e6 ? 1e3 : 1e6;
    const char *suffix = largest < 1e4 ? "" : largest < 1e6 ? "k" : "M";
    int decimals = (int)fmax(0, ceil(-log10(a->step / unit) - 1e-6));
    if (a->name)
        plot_text(f, a->name[i] ? a->name[i] : "");
    else if (i == 0)
        fputc('0', f);
    else
        fprintf(f, "%.*f%s", decimals, (double)i * a->step / unit, suffix);
}

static void put_axes(const Plot *p) {
    FILE *f = p->f;
    const double bottom = TOP + p->height;
    fputs("<path class=\"grid\" d=\"", f);
    for (long i = first_tick(&p->x); i <= last_tick(&p->x); i++)
        if (!p->x.name || p->x.name[i])
            fprintf(f, "M%.1f %dV%.0f", across(p, (double)i * p->x.step), TOP, bottom);
    for (long i = first_tick(&p->y); i <= last_tick(&p->y); i++)
        fprintf(f, "M%d %.1fH%d", LEFT, down(p, (double)i * p->y.step), LEFT + ACROSS);
    double floor_y = p->y.lo <= 0 && p->y.hi >= 0 ? down(p, 0) : bottom;
    fprintf(f, "\"/>\n<path class=\"frame\" d=\"M%d %dV%.0fM%d %.1fH%d\"/>\n", LEFT, TOP, bottom,
            LEFT, floor_y, LEFT + ACROSS);
    for (long i = first_tick(&p->x); i <= last_tick(&p->x); i++) {
        fprintf(f, "<text x=\"%.1f\" y=\"%.0f\" text-anchor=\"middle\">",
                across(p, (double)i * p->x.step), bottom + 17);
        put_tick_text(f, &p->x, i);
        fputs("</text>\n", f);
    }
    for (long i = first_tick(&p->y); i <= last_tick(&p->y); i++) {
        fprintf(f, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">", LEFT - 6,
                down(p, (double)i * p->y.step) + 4.5);
        put_tick_text(f, &p->y, i);
        fputs("</text>\n", f);
    }
    fprintf(f, "<text x=\"%d\" y=\"%.0f\" text-anchor=\"middle\">", LEFT + ACROSS / 2, bottom + 37);
    plot_text(f, p->x.label);
    fputs("</text>\n<text x=\"4\" y=\"14\">", f);
    plot_text(f, p->y.label);
    fputs("</text>\n", f);
}

/* ---- A figure ---- */

Plot plot_begin(FILE *f, const char *title, PlotAxis x, PlotAxis y, int height) {
    Plot p = {f, x, y, height};
    fputs("<figure>\n<h2>", f);
    plot_text(f, title);
    fprintf(f, "</h2>\n<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", WIDTH,
            TOP + height + BOTTOM);
    plot_text(f, title);
    fputs("\">\n", f);
    put_axes(&p);
    return p;
}

void plot_line(Plot *p, const char *class, int n, const double *x, const double *y) {
    bool begun = false;
    fprintf(p->f, "<path class=\"line %s\" d=\"", class);
    for (int i = 0; i < n; i++) {
        bool is_there = isfinite(x[i]) && isfinite(y[i]);
        /* a point alone is a line without length, which the round ends make a dot */
        if (is_there)
            fprintf(p->f, begun ? "L%.1f %.1f" : "M%.1f %.1fh0", across(p, x[i]), down(p, y[i]));
        begun = is_there;
    }
    fputs("\"/>\n", p->f);
}

void plot_dots(Plot *p, const char *class, int n, const double *x, const double *y) {
    for (int i = 0; i < n; i++)
        if (isfinite(x[i]) && isfinite(y[i]))
            fprintf(p->f, "<circle class=\"fill %s\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>\n", class,
                    across(p, x[i]), down(p, y[i]));
}

static void put_fill(const Plot *p, const char *class, double opacity) {
    fprintf(p->f, "<path class=\"fill %s\" fill-opacity=\"%.2f\" d=\"", class, opacity);
}

static void put_rectangle(const Plot *p, double x0, double y0, double x1, double y1) {
    fprintf(p->f, "M%.1f %.1fH%.1fV%.1fH%.1fz", across(p, x0), down(p, y0), across(p, x1),
            down(p, y1), across(p, x0));
}

void plot_band(Plot *p, const char *class, double opacity, int n, const double *x, const double *lo,
               const double *hi) {
    put_fill(p, class, opacity);
    for (int i = 0; i < n; i++)
        fprintf(p->f, "%s%.1f %.1f", i ? "L" : "M", across(p, x[i]), down(p, hi[i]));
    for (int i = n; i-- > 0;) fprintf(p->f, "L%.1f %.1f", across(p, x[i]), down(p, lo[i]));
    fputs("\"/>\n", p->f);
}

void plot_bar(Plot *p, const char *class, double x0, double x1, double y) {
    if (!isfinite(y)) return;
    put_fill(p, class, 1);
    put_rectangle(p, x0, 0, x1, y);
    fputs("\"/>\n", p->f);
}

void plot_cells(Plot *p, const char *class, int nx, int ny, const int64_t *count,
                PlotKey keys[PLOT_KEYS]) {
    int64_t most = 1;
    for (int i = 0; i < nx * ny; i++) most = count[i] > most ? count[i] : most;
    const int64_t base = most < 128 ? 2 : most < 16384 ? 4 : 10;
    int levels = 1;
    for (int64_t rest = most; rest >= base; rest /= base) levels++;
    CHECK(levels < PLOT_KEYS, "%d levels for %lld events in a cell", levels, (long long)most);
    int64_t least = 1; /* of the level */
    for (int level = 0; level < levels; level++, least *= base) {
        PlotKey *key = &keys[level];
        *key = (PlotKey){class, "", 0.1 + 0.9 * (level + 1) / levels};
        snprintf(key->name, sizeof key->name, level ? "%lld" : "%lld event", (long long)least);
        put_fill(p, class, key->opacity);
        for (int i = 0; i < nx * ny; i++) {
            if (count[i] < least || count[i] / base >= least) continue;
            double w = (p->x.hi - p->x.lo) / nx, h = (p->y.hi - p->y.lo) / ny;
            double x = p->x.lo + w * (i % nx), y = p->y.lo + h * (i / nx);
            put_rectangle(p, x, y, x + w, y + h);
        }
        fputs("\" shape-rendering=\"crispEdges\"/>\n", p->f);
    }
    keys[levels] = (PlotKey){0};
}

void plot_end(Plot *p, const PlotKey *keys, const char *caption) {
    fputs("</svg>\n<p class=\"keys\">\n", p->f);
    for (; *keys->name; keys++) {
        fputs("<span><svg viewBox=\"0 0 28 12\" aria-hidden=\"true\">", p->f);
        if (keys->opacity > 0)
            put_fill(p, keys->class, keys->opacity);
        else
            fprintf(p->f, "<path class=\"line %s\" d=\"", keys->class);
        fprintf(p->f, "%s\"/></svg> ", keys->opacity > 0 ? "M8 0H20V12H8z" : "M2 6H26");
        plot_text(p->f, keys->name);
        fputs("</span>\n", p->f);
    }
    fputs("</p>\n<figcaption>", p->f);
    plot_text(p->f, caption);
    fputs("</figcaption>\n</figure>\n", p->f);
}
