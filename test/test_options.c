/* The option table: what is accepted, what each mistake is told, presets, help and JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc_like/options.h"

typedef struct Config {
    int d_model, steps;
    uint64_t seed;
    double lr;
    const char *device, *data;
    bool plan, compile;
} Config;

enum { ROWS = 10 };

typedef struct Fixture {
    Config c;
    Option row[ROWS];
    Options o;
} Fixture;

static void make(Fixture *f, bool takes_args) {
    const Option row[ROWS] = {
        {"Model", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
        {"d-model", OPT_INT, &f->c.d_model, "384", 32, 8192, "width of the residual stream", NULL},
        {"Training", OPT_HEADING, NULL, NULL, 0, 0, NULL, NULL},
        {"steps", OPT_INT, &f->c.steps, "-1", 0, 0, "optimiser steps", NULL},
        {"seed", OPT_U64, &f->c.seed, "1", 0, 0, "of all random numbers", NULL},
        {"lr", OPT_DOUBLE, &f->c.lr, "3e-4", 0, 1,
         "learning rate of Adam, which is the rule for all parameters that are no matrices inside "
         "the blocks, so that this sentence needs more than one line",
         NULL},
        {"device", OPT_STRING, &f->c.device, "cpu", 0, 0, "where the ops run", "cpu|cuda|plain"},
        {"data", OPT_STRING, &f->c.data, NULL, 0, 0, "folder of the recording", NULL},
        {"plan", OPT_FLAG, &f->c.plan, "off", 0, 0, "print memory and time, then leave", NULL},
        {"compile", OPT_FLAG, &f->c.compile, "on", 0, 0, "compile the masks", NULL},
    };
    memcpy(f->row, row, sizeof row);
    options_init(&f->o, f->row, ROWS, takes_args);
}

/* Parses the words after the program's name, up to NULL. */
static int parse(Fixture *f, Err *e, const char *const *word) {
    char *argv[32] = {(char *)(uintptr_t) "prog"};
    int argc = 1;
    for (; word[argc - 1]; argc++) argv[argc] = (char *)(uintptr_t)word[argc - 1];
    e->text[0] = 0;
    return options_parse(&f->o, argc, argv, e);
}

#define WORDS(...) \
    (const char *const[]) { __VA_ARGS__, NULL }

static void defaults(void **state) {
    (void)state;
    Fixture f;
    make(&f, false);
    assert_int_equal(f.c.d_model, 384);
    assert_int_equal(f.c.steps, -1);
    assert_int_equal(f.c.seed, 1);
    assert_true(f.c.lr == 3e-4);
    assert_string_equal(f.c.device, "cpu");
    assert_null(f.c.data);
    assert_false(f.c.plan);
    assert_true(f.c.compile);
    for (int i = 0; i < ROWS; i++) assert_int_equal(f.o.origin[i], FROM_DEFAULT);
    options_free(&f.o);
}

static void accepted(void **state) {
    (void)state;
    Fixture f;
    Err e;
    make(&f, false);
    int status = parse(
        &f, &e,
        WORDS("--d-model", "512", "--steps=-3", "--seed", "18446744073709551615", "--lr=0.5",
              "--lr", "1e-2", "--device", "cuda", "--data=--odd=name", "--plan", "--no-compile"));
    if (status) fail_msg("%s", e.text);
    assert_int_equal(f.c.d_model, 512);
    assert_int_equal(f.c.steps, -3);
    assert_true(f.c.seed == UINT64_MAX);
    assert_true(f.c.lr == 0.01); /* the last one counts */
    assert_string_equal(f.c.device, "cuda");
    assert_string_equal(f.c.data, "--odd=name");
    assert_true(f.c.plan);
    assert_false(f.c.compile);
    assert_true(option_was_set(&f.o, "lr"));
    assert_int_equal(parse(&f, &e, WORDS("--plan=off", "--compile=on", "--data=")), 0);
    assert_false(f.c.plan);
    assert_true(f.c.compile);
    assert_string_equal(f.c.data, "");
    assert_false(f.o.help);
    assert_int_equal(parse(&f, &e, WORDS("--help", "--nonsense")), 0);
    assert_true(f.o.help);
    options_free(&f.o);
}

static void mistakes(void **state) {
    (void)state;
    static const struct {
        const char *word[3];
        const char *says[3];
    } row[] = {
        {{"--d-modle", "3"}, {"unknown option '--d-modle'", "did you mean '--d-model'"}},
        {{"--stepz=3"}, {"unknown option '--stepz'", "'--steps'"}},
        {{"--dev=cpu"}, {"unknown option '--dev'", "'--device'"}},
        {{"--no-plam"}, {"unknown option '--no-plam'", "--help lists all"}},
        {{"--zzzzzzzz"}, {"unknown option '--zzzzzzzz'; --help lists all"}},
        {{"--d-model"}, {"--d-model needs a value", "default 384", "--d-model=VALUE"}},
        {{"--data", "--plan"}, {"--data needs a value", "TEXT"}},
        {{"--device"}, {"cpu|cuda|plain"}},
        {{"--d-model", "12x"}, {"--d-model is '12x'", "a whole number"}},
        {{"--d-model", ""}, {"--d-model is ''", "a whole number"}},
        {{"--d-model", "1.5"}, {"--d-model is '1.5'", "a whole number"}},
        {{"--d-model", "31"}, {"--d-model is 31", "from 32 to 8192"}},
        {{"--d-model", "8193"}, {"--d-model is 8193", "from 32 to 8192"}},
        {{"--steps", "99999999999"}, {"below 2147483648"}},
        {{"--seed", "-1"}, {"--seed is '-1'", "a whole number from 0"}},
        {{"--seed", "18446744073709551616"}, {"a whole number from 0"}},
        {{"--lr", "fast"}, {"--lr is 'fast'", "a number"}},
        {{"--lr", "nan"}, {"--lr is 'nan'", "a number"}},
        {{"--lr", "inf"}, {"a number"}},
        {{"--lr", "1.01"}, {"from 0 to 1"}},
        {{"--device", "cdua"}, {"one of cpu, cuda, plain", "did you mean 'cuda'?"}},
        {{"--device", "quantum"}, {"--device is 'quantum', but must be one of cpu, cuda, plain"}},
        {{"--plan=maybe"}, {"--plan is 'maybe'", "on or off"}},
        {{"--no-lr"}, {"--lr has a value and cannot be turned off"}},
        {{"--no-plan=on"}, {"--no-plan takes no value"}},
        {{"-d", "3"}, {"'-d' is no option", "two dashes"}},
        {{"stray"}, {"'stray' is no option"}},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        Fixture f;
        Err e;
        make(&f, false);
        assert_int_equal(parse(&f, &e, row[i].word), -1);
        for (int k = 0; k < 3 && row[i].says[k]; k++)
            if (!strstr(e.text, row[i].says[k]))
                fail_msg("\"%s\" should say \"%s\"", e.text, row[i].says[k]);
        assert_int_equal(f.c.d_model, 384); /* what was wrong changed nothing */
        assert_true(f.c.lr == 3e-4);
        assert_string_equal(f.c.device, "cpu");
        options_free(&f.o);
    }
}

static void arguments(void **state) {
    (void)state;
    Fixture f;
    Err e;
    make(&f, true);
    assert_int_equal(parse(&f, &e, WORDS("a", "--steps", "5", "b", "--", "--plan", "-c")), 0);
    assert_int_equal(f.o.n_args, 4);
    assert_string_equal(f.o.arg[0], "a");
    assert_string_equal(f.o.arg[1], "b");
    assert_string_equal(f.o.arg[2], "--plan");
    assert_string_equal(f.o.arg[3], "-c");
    assert_false(f.c.plan);
    assert_int_equal(parse(&f, &e, WORDS("-c")), -1);
    options_free(&f.o);
}

static void presets(void **state) {
    (void)state;
    Fixture f;
    Err e;
    make(&f, false);
    assert_int_equal(parse(&f, &e, WORDS("--d-model", "384")), 0); /* set, though to the default */
    char text[8] = "256";
    assert_int_equal(options_preset(&f.o, "d-model", text, &e), 0);
    assert_int_equal(options_preset(&f.o, "steps", text, &e), 0);
    assert_int_equal(options_preset(&f.o, "data", text, &e), 0);
    assert_int_equal(options_preset(&f.o, "plan", "on", &e), 0);
    memset(text, 'x', 3); /* the text was copied */
    assert_int_equal(f.c.d_model, 384);
    assert_int_equal(f.c.steps, 256);
    assert_string_equal(f.c.data, "256");
    assert_true(f.c.plan);
    assert_true(option_was_set(&f.o, "d-model"));
    assert_false(option_was_set(&f.o, "steps"));
    assert_int_equal(f.o.origin[3], FROM_PRESET);
    assert_string_equal(option_origin_name(f.o.origin[3]), "preset");
    assert_int_equal(options_adopt(&f.o, "d-model", "64", &e), 0);
    assert_int_equal(options_adopt(&f.o, "steps", "257", &e), 0);
    assert_int_equal(f.c.d_model, 384);
    assert_int_equal(f.c.steps, 257);
    assert_string_equal(option_origin_name(f.o.origin[3]), "checkpoint");
    assert_int_equal(options_preset(&f.o, "steps", "256", &e), 0);
    assert_int_equal(options_preset(&f.o, "steps", "many", &e), -1);
    assert_non_null(strstr(e.text, "--steps is 'many'"));
    assert_int_equal(f.c.steps, 256);
    options_free(&f.o);
}

static void shown(void **state) {
    (void)state;
    Fixture f;
    Err e;
    char buf[OPTION_TEXT];
    make(&f, false);
    assert_int_equal(parse(&f, &e, WORDS("--seed=18446744073709551615", "--lr=0.1", "--plan")), 0);
    static const char *const text[ROWS] = {"",    "384", "", "-1", "18446744073709551615",
                                           "0.1", "cpu", "", "on", "on"};
    for (int i = 0; i < ROWS; i++) assert_string_equal(option_text(&f.o, i, buf), text[i]);

    cJSON *json = options_json(&f.o);
    char *printed = cJSON_PrintUnformatted(json);
    assert_string_equal(printed,
                        "{\"d-model\":{\"value\":384,\"from\":\"default\"},"
                        "\"steps\":{\"value\":-1,\"from\":\"default\"},"
                        "\"seed\":{\"value\":18446744073709551615,\"from\":\"user\"},"
                        "\"lr\":{\"value\":0.1,\"from\":\"user\"},"
                        "\"device\":{\"value\":\"cpu\",\"from\":\"default\"},"
                        "\"data\":{\"value\":null,\"from\":\"default\"},"
                        "\"plan\":{\"value\":true,\"from\":\"user\"},"
                        "\"compile\":{\"value\":true,\"from\":\"default\"}}");
    cJSON_free(printed);
    cJSON_Delete(json);
    options_free(&f.o);
}

static void help(void **state) {
    (void)state;
    Fixture f;
    make(&f, false);
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    assert_non_null(out);
    options_help(&f.o, "prog [options]", out);
    fclose(out);
    static const char begins[] = "prog [options]\n\nModel\n  --d-model INT ";
    assert_int_equal(strncmp(text, begins, sizeof begins - 1), 0);
    static const char *const holds[] = {
        "width of the residual stream [32 to 8192; default 384]",
        "\nTraining\n",
        "--[no-]plan",
        "[default off]",
        "where the ops run [cpu, cuda, plain; default cpu]",
        "folder of the recording [default none]",
    };
    for (size_t i = 0; i < sizeof holds / sizeof *holds; i++)
        if (!strstr(text, holds[i])) fail_msg("no \"%s\" in:\n%s", holds[i], text);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        assert_true(strlen(line) <= 100);
        char *about = strstr(line, "where the ops");
        if (about) assert_int_equal(about - line, 30);
    }
    free(text);
    options_free(&f.o);
}

static void nearest(void **state) {
    (void)state;
    char buf[NEAREST_TEXT];
    assert_string_equal(nearest_names("vanila", "vanilla|sdpa|flex", buf), "'vanilla'");
    assert_string_equal(nearest_names("spda", "vanilla|sdpa|flex", buf), "'sdpa'");
    assert_string_equal(nearest_names("fle", "flex|flex-dense|loop", buf),
                        "'flex' or 'flex-dense'");
    assert_string_equal(nearest_names("quantum", "vanilla|sdpa|flex", buf), "");
    assert_string_equal(nearest_names("", "vanilla", buf), "");
    assert_string_equal(nearest_names("x", "", buf), "");
    char long_name[300];
    memset(long_name, 'a', 299);
    long_name[299] = 0;
    assert_string_equal(nearest_names(long_name, "aaa|bbb", buf), "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),  cmocka_unit_test(accepted), cmocka_unit_test(mistakes),
        cmocka_unit_test(arguments), cmocka_unit_test(presets),  cmocka_unit_test(shown),
        cmocka_unit_test(help),      cmocka_unit_test(nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
