/* Configs as text and back: a table of each kind, the models' own tables, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "llmc_like/config.h"
#include "models/icecube_flat.h"
#include "models/wm.h"

static const char *const colours[] = {"red", "green", NULL};

typedef struct Sizes {
    int width;
    double scale;
    const char *colour;
} Sizes;

enum { ROWS = 3 };

static void rows(Sizes *s, ConfigRow row[ROWS]) {
    const ConfigRow table[ROWS] = {{"width", "w", CONFIG_INT, &s->width, NULL, true},
                                   {"scale", "scale", CONFIG_DOUBLE, &s->scale, NULL, false},
                                   {"colour", NULL, CONFIG_NAME, &s->colour, colours, false}};
    memcpy(row, table, sizeof table);
}

static void test_round_trip(void **state) {
    (void)state;
    Sizes s = {12, 0.1, "green"}, back = {0};
    ConfigRow row[ROWS];
    char text[128];
    Err e = {""};
    rows(&s, row);
    config_write(text, sizeof text, "toy", row, ROWS);
    assert_string_equal(text,
                        "{\"model\": \"toy\", \"width\": 12, \"scale\": 0.1, \"colour\": "
                        "\"green\"}");
    rows(&back, row);
    assert_int_equal(config_read(text, "toy", false, row, ROWS, &e), 0);
    assert_int_equal(back.width, 12);
    assert_true(back.scale == 0.1);
    assert_ptr_equal(back.colour, colours[1]); /* not into the text, which goes */
    assert_int_equal(config_read("{\"width\": 3, \"extra\": []}", "toy", true, row, ROWS, &e), 0);
    assert_int_equal(back.width, 3);
    assert_true(back.scale == 0.1);
}

static void test_refused(void **state) {
    (void)state;
    const struct {
        const char *json, *words;
    } bad[] = {{"", "no model"},
               {"[]", "no model"},
               {"{\"width\": 1}", "no model; expected is \"model\": \"toy\""},
               {"{\"model\": \"other\", \"width\": 1}", "model is \"other\"; expected is toy"},
               {"{\"model\": 1, \"width\": 1}", "model is 1"},
               {"{\"model\": \"toy\"}", "width is missing"},
               {"{\"model\": \"toy\", \"width\": \"1\"}", "width is \"1\"; expected is a whole"},
               {"{\"model\": \"toy\", \"width\": 1.5}", "width is 1.5"},
               {"{\"model\": \"toy\", \"width\": 2000000}", "width is 2000000"},
               {"{\"model\": \"toy\", \"width\": null}", "width is null"},
               {"{\"model\": \"toy\", \"width\": 1, \"scale\": \"3e3\"}", "scale is \"3e3\""},
               {"{\"model\": \"toy\", \"width\": 1, \"scale\": 1e999}", "scale is"},
               {"{\"model\": \"toy\", \"width\": 1, \"colour\": 7}", "expected is red|green"},
               {"{\"model\": \"toy\", \"width\": 1, \"colour\": \"blue\"}", "colour is \"blue\""}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Sizes s = {0};
        ConfigRow row[ROWS];
        Err e = {""};
        rows(&s, row);
        assert_int_equal(config_read(bad[i].json, "toy", false, row, ROWS, &e), -1);
        if (!strstr(e.text, bad[i].words)) fail_msg("no '%s' in: %s", bad[i].words, e.text);
    }
}

/* What the user named stays. */
static void test_adopt(void **state) {
    (void)state;
    Sizes s = {12, 0.1, "green"};
    ConfigRow row[ROWS];
    int w;
    double scale;
    const Option table[] = {{"w", OPT_INT, &w, "1", 1, 20, "", NULL},
                            {"scale", OPT_DOUBLE, &scale, "1", 0, 9, "", NULL}};
    Options o;
    Err e = {""};
    options_init(&o, table, 2, false);
    char *argv[] = {"program", "--w", "5"};
    assert_int_equal(options_parse(&o, 3, argv, &e), 0);
    rows(&s, row);
    assert_int_equal(config_adopt(&o, row, ROWS, &e), 0);
    assert_int_equal(w, 5);
    assert_true(scale == 0.1);
    s.scale = 10;
    assert_int_equal(config_adopt(&o, row, ROWS, &e), -1);
    assert_non_null(strstr(e.text, "scale"));
    options_free(&o);
}

/* Each model's text comes back whole; a value of another kind is never passed over. */
static void test_models(void **state) {
    (void)state;
    IceConfig dom = ice_config_default(), dom_back;
    IceFlatConfig flat;
    WmConfig wm = wm_config_default(), wm_back;
    char text[512], again[512];
    Err e = {""};
    dom.t1_layers = 3, dom.pooling = "mean+max", dom.dropout = 0.25, dom.position_scale = 100;
    ice_config_json(&dom, text, sizeof text);
    assert_int_equal(ice_config_parse(&dom_back, text, &e), 0);
    ice_config_json(&dom_back, again, sizeof again);
    assert_string_equal(text, again);
    assert_non_null(strstr(text, "\"t1_layers\": 3, \"t2_layers\": 4"));
    wm.rope = "vid", wm.rope_base = 1234.5, wm.height = 30;
    wm_config_json(&wm, text, sizeof text);
    assert_int_equal(wm_config_parse(&wm_back, text, &e), 0);
    wm_config_json(&wm_back, again, sizeof again);
    assert_string_equal(text, again);
    assert_int_equal(ice_config_parse(&dom, "{\"model\": \"hierarchical\", \"n_layers\": 2}", &e),
                     0);
    assert_true(dom.t1_layers == 2 && dom.t2_layers == 2);
    static const char *const of_dom[] = {"\"time_scale\": \"3e3\"", "\"dropout\": true",
                                         "\"position_scale\": []", "\"pooling\": 1"};
    static const char *const of_wm[] = {"\"rope_base\": \"5e3\"", "\"rope\": null"};
    for (int i = 0; i < 4; i++) {
        snprintf(text, sizeof text, "{\"model\": \"hierarchical\", %s}", of_dom[i]);
        assert_int_equal(ice_config_parse(&dom, text, &e), -1);
        if (i == 3) continue; /* which the flat model has not */
        snprintf(text, sizeof text, "{\"model\": \"flat\", %s}", of_dom[i]);
        assert_int_equal(ice_flat_config_parse(&flat, text, &e), -1);
    }
    for (int i = 0; i < 2; i++) {
        snprintf(text, sizeof text,
                 "{\"d_model\": 64, \"n_heads\": 2, \"n_blocks\": 1, \"n_window\": 2, %s}",
                 of_wm[i]);
        assert_int_equal(wm_config_parse(&wm, text, &e), -1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_adopt),
        cmocka_unit_test(test_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
