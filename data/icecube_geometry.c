#include "data/icecube_geometry.h"

#include <math.h>

static const double DEGREE = 0.017453292519943295;

enum { GRID_ROWS = 10, GRID_STRINGS = 78, SPARSE_PLACES = 10 };

/* A string of 60 at (x, y): the regular ones are equally spaced, the dense ones leave out the
 * dustiest layer of the ice, about 100 to 160 m below the centre. */
static void place_string(int string, double x, double y, float *xyz) {
    for (int place = 0; place < ICE_SENSORS_PER_STRING; place++) {
        double z = 500.0 - 17.02 * place;
        if (string >= GRID_STRINGS)
            z = place < SPARSE_PLACES ? 188.0 - 10.0 * place
                                      : -159.0 - 7.01 * (place - SPARSE_PLACES);
        float *p = xyz + 3 * (string * ICE_SENSORS_PER_STRING + place);
        p[0] = (float)x;
        p[1] = (float)y;
        p[2] = (float)z;
    }
}

void ice_geometry_builtin(float *xyz) {
    static const int in_row[GRID_ROWS] = {6, 7, 8, 9, 10, 10, 9, 8, 7, 4};
    static const struct {
        double radius, angle;
    } dense[ICE_STRINGS - GRID_STRINGS] = {{41, 249}, {41, 309}, {72, 99},  {72, 39},
                                           {72, 339}, {72, 279}, {72, 219}, {72, 159}};
    const double step = 125.0, centre_x = 46.3, centre_y = -34.9; /* of string 35 */
    const double along_x = step * cos(9 * DEGREE), along_y = step * sin(9 * DEGREE);
    const double up_x = step * cos(129 * DEGREE), up_y = step * sin(129 * DEGREE);
    int string = 0;
    for (int row = 0; row < GRID_ROWS; row++)
        for (int i = 0; i < in_row[row]; i++) {
            /* in grid steps from string 35, the sixth of row 4; rows beyond it start one later each
             */
            double rows = row - 4, steps = i - 5 + (row > 4 ? row - 4 : 0);
            place_string(string++, centre_x + steps * along_x + rows * up_x,
                         centre_y + steps * along_y + rows * up_y, xyz);
        }
    for (int i = 0; string < ICE_STRINGS; i++) {
        double angle = dense[i].angle * DEGREE;
        place_string(string++, centre_x + dense[i].radius * cos(angle),
                     centre_y + dense[i].radius * sin(angle), xyz);
    }
}

double ice_angle_deg(const float a[3], const float b[3]) {
    double x = (double)a[1] * b[2] - (double)a[2] * b[1];
    double y = (double)a[2] * b[0] - (double)a[0] * b[2];
    double z = (double)a[0] * b[1] - (double)a[1] * b[0];
    double dot = (double)a[0] * b[0] + (double)a[1] * b[1] + (double)a[2] * b[2];
    return atan2(sqrt(x * x + y * y + z * z), dot) / DEGREE;
}
