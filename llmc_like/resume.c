#include "llmc_like/resume.h"

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool is_file(const char *text) {
    const char *end = ".safetensors";
    const size_t n = strlen(text), k = strlen(end);
    return n > k && !strcmp(text + n - k, end);
}

void resume_path(const char **resume, const char *out, char path[RESUME_PATH]) {
    if (!*resume) return;
    const char *text = **resume ? *resume : out;
    snprintf(path, RESUME_PATH, "%s%s", text, is_file(text) ? "" : "/checkpoints/last.safetensors");
    *resume = path;
}

bool resume_folder(const char *resume, char path[RESUME_PATH]) {
    static const char inside[] = "/checkpoints";
    const size_t k = sizeof inside - 1;
    snprintf(path, RESUME_PATH, "%s", resume);
    if (!is_file(resume)) return true;
    char *slash = strrchr(path, '/');
    if (!slash || slash - path <= (ptrdiff_t)k || strncmp(slash - k, inside, k)) return false;
    slash[-(ptrdiff_t)k] = 0;
    return true;
}

static const char *folder(const char *base, int number, char path[RESUME_PATH]) {
    if (number > 1)
        snprintf(path, RESUME_PATH, "%s-%d", base, number);
    else
        snprintf(path, RESUME_PATH, "%s", base);
    return path;
}

const char *run_folder(const char *base, bool last, char path[RESUME_PATH]) {
    char checkpoints[RESUME_PATH + 16];
    int number = 1;
    for (;; number++) {
        snprintf(checkpoints, sizeof checkpoints, "%s/checkpoints", folder(base, number, path));
        if (access(checkpoints, F_OK)) break;
    }
    return folder(base, last && number > 1 ? number - 1 : number, path);
}

/* Stands for an expression; no value of an option that may be one. */
static const char EXPRESSION[] = "(expression)";

static bool is_in(const char *const *list, const char *name) {
    for (; *list; list++)
        if (!strcmp(*list, name)) return true;
    return false;
}

char *resume_text(const Options *o, const char *const *expressions) {
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < o->n; i++) {
        char text[OPTION_TEXT];
        const char *name = o->row[i].name;
        if (option_text(o, i, text)[0])
            cJSON_AddStringToObject(json, name, is_in(expressions, name) ? EXPRESSION : text);
    }
    char *all = cJSON_PrintUnformatted(json);
    CHECK(all, "no memory for %d options", o->n);
    cJSON_Delete(json);
    return all;
}

/* About one run, not about what it trains; in any program. */
static const char *const of_a_run[] = {"out",     "resume", "init",    "plan",
                                       "profile", "device", "threads", NULL};

int resume_options(Options *o, const char *text, const char *const *own, Err *e) {
    cJSON *json = text ? cJSON_Parse(text) : NULL;
    int status = 0;
    for (int i = 0; i < o->n && status == 0; i++) {
        const Option *r = &o->row[i];
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(json, r->name);
        if (r->kind == OPT_HEADING || is_in(of_a_run, r->name) || is_in(own, r->name) ||
            !cJSON_IsString(value))
            continue;
        const char *was = value->valuestring;
        const bool named = o->origin[i] == FROM_USER;
        if (named && !strcmp(r->name, "preset") && strcmp(o->text[i], "auto") &&
            strcmp(o->text[i], was))
            status = err_set(e,
                             "it comes from a run with --preset %s and brings back its options; "
                             "leave out --preset %s, or begin a new run with its parameters "
                             "(--init)",
                             was, o->text[i]);
        else if (strcmp(was, EXPRESSION))
            status = options_adopt(o, r->name, was, e);
        else if (!named)
            status = err_set(e,
                             "it was trained with an expression as --%s, which a checkpoint does "
                             "not carry; give --%s again (the run's run.json has it)",
                             r->name, r->name);
    }
    cJSON_Delete(json);
    return status;
}
