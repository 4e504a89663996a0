/* Where the 5160 sensors of the IceCube detector stand, and the angle between two directions.
 *
 * Coordinates are the detector's: origin near its centre, z upwards, metres. A sensor's number is
 * 60 * string + place, place 0 at the top, as in Kaggle's sensor_geometry.csv. */
#ifndef DATA_ICECUBE_GEOMETRY_H
#define DATA_ICECUBE_GEOMETRY_H

enum {
    ICE_STRINGS = 86,
    ICE_SENSORS_PER_STRING = 60,
    ICE_SENSORS = ICE_STRINGS * ICE_SENSORS_PER_STRING
};

/* The built-in geometry, for whoever has no sensor_geometry.csv: xyz (5160, 3), m. An approximation
 * by a few rules:
 *   strings 0-77   a hexagonal grid of 125 m, turned by 9 degrees, in ten rows of 6 to 10 (the last
 *                  of 4) in the detector's own order; sensors each 17.02 m from z 500 down to -504
 *   strings 78-85  the denser middle: two at 41 m and six at 72 m from string 35; ten sensors each
 *                  10 m from z 188 down to 98, fifty each 7.01 m from -159 to -502.5
 * Three quarters of the real strings stand within 2 m of this plan, the worst 31 m off; real
 * sensors are 2 m higher or lower in the median, at most 25. */
void ice_geometry_builtin(float *xyz);

/* The angle between two unit vectors in degrees, atan2(|a x b|, a . b): exact near 0 and 180, where
 * the arccosine is not. */
double ice_angle_deg(const float a[3], const float b[3]);

#endif
