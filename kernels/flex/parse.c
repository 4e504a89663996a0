/* From text to tree: a lexer that gives one token at a time, and precedence climbing over it. The
 * first error is kept and everything after it falls through, so the functions need not check. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/flex/tree.h"

typedef enum { TOKEN_END, TOKEN_INT, TOKEN_FLOAT, TOKEN_NAME, TOKEN_SIGN } TokenKind;

typedef struct Token {
    TokenKind kind;
    int at, length;
    int i;
    float f;
} Token;

typedef struct Parser {
    FlexProgram *p;
    const char *text;
    bool score_allowed, failed;
    int depth;
    Token now; /* the token not yet used */
    int failed_at;
    char sentence[512];
} Parser;

static FlexNode *parse_expression(Parser *s);
static FlexNode *parse_unary(Parser *s);

/* Keeps the first error. What it returns stands in for the node that could not be made. */
static FlexNode *fail(Parser *s, int at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static FlexNode *fail(Parser *s, int at, const char *fmt, ...) {
    if (!s->failed) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(s->sentence, sizeof s->sentence, fmt, ap);
        va_end(ap);
        s->failed = true;
        s->failed_at = at;
    }
    s->now = (Token){.kind = TOKEN_END, .at = s->now.at};
    return flex_int(&s->p->tree, 0);
}

static bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static void lex_number(Parser *s, Token *t) {
    const char *start = s->text + t->at, *c = start;
    bool whole = true;
    while (is_digit(*c)) c++;
    if (*c == '.') {
        whole = false;
        for (c++; is_digit(*c);) c++;
    }
    if (*c == 'e' || *c == 'E') {
        const char *digits = c + 1 + (c[1] == '+' || c[1] == '-');
        if (is_digit(*digits)) {
            whole = false;
            for (c = digits; is_digit(*c);) c++;
        }
    }
    t->length = (int)(c - start);
    t->kind = whole ? TOKEN_INT : TOKEN_FLOAT;
    /* strtod may read on where C's floats do (0x1p3): it is given the digits found here alone */
    char digits[64];
    if (is_letter(*c) || *c == '.') {
        fail(s, t->at, "a number is written 12, 0.5 or 1e-3, with nothing directly after it");
    } else if (t->length >= (int)sizeof digits) {
        fail(s, t->at, "this number has %d characters; at most %d are read", t->length,
             (int)sizeof digits - 1);
    } else {
        memcpy(digits, start, (size_t)t->length);
        digits[t->length] = '\0';
        const double value = strtod(digits, NULL);
        if (whole && value > 2147483647.0)
            fail(s, t->at,
                 "this whole number is larger than 2147483647; write it with a '.' for a "
                 "float");
        else if (!isfinite((float)value))
            fail(s, t->at, "this number is larger than a float can be (3.4e38)");
        t->i = whole && value <= 2147483647.0 ? (int)value : 0;
        t->f = (float)value;
    }
}

static void next(Parser *s) {
    if (s->failed) return;
    Token t = {.at = s->now.at + s->now.length, .length = 1, .kind = TOKEN_SIGN};
    while (s->text[t.at] == ' ' || s->text[t.at] == '\t' || s->text[t.at] == '\n') t.at++;
    const char *c = s->text + t.at;
    if (*c == '\0') {
        t.kind = TOKEN_END;
        t.length = 0;
    } else if (is_digit(c[0]) || (c[0] == '.' && is_digit(c[1]))) {
        lex_number(s, &t);
    } else if (is_letter(*c)) {
        t.kind = TOKEN_NAME;
        while (is_letter(c[t.length]) || is_digit(c[t.length])) t.length++;
    } else if (strchr("|&=", c[0]) && c[1] == c[0]) {
        t.length = 2;
    } else if (strchr("<>=!", c[0]) && c[1] == '=') {
        t.length = 2;
    } else if (c[0] == '=') {
        fail(s, t.at, "'=' would assign; to compare write '=='");
    } else if (!strchr("?:|^&<>+-*/%!()[],", c[0])) {
        if (c[0] > ' ' && c[0] < 127)
            fail(s, t.at, "'%c' is not part of the language of masks and scores", c[0]);
        else
            fail(s, t.at, "the byte 0x%02x is not part of the language of masks and scores",
                 (unsigned)(unsigned char)c[0]);
    }
    if (!s->failed) s->now = t;
}

static bool at_sign(const Parser *s, const char *sign) {
    return s->now.kind == TOKEN_SIGN && s->now.length == (int)strlen(sign) &&
           !strncmp(s->text + s->now.at, sign, strlen(sign));
}

static bool take(Parser *s, const char *sign) {
    if (!at_sign(s, sign)) return false;
    next(s);
    return true;
}

static void found(const Parser *s, char *out, size_t size) {
    if (s->now.kind == TOKEN_END)
        snprintf(out, size, "the expression ends");
    else
        snprintf(out, size, "there is '%.*s'", s->now.length > 40 ? 40 : s->now.length,
                 s->text + s->now.at);
}

static void expect(Parser *s, const char *sign, const char *what) {
    if (s->failed || take(s, sign)) return;
    char here[80];
    found(s, here, sizeof here);
    fail(s, s->now.at, "expected '%s' %s, but %s", sign, what, here);
}

/* A node made by the operator or function at place `at`. */
static FlexNode *make(Parser *s, int at, FlexOp op, FlexNode *a, FlexNode *b, FlexNode *c) {
    s->p->tree.at = at;
    FlexNode *n = flex_node(&s->p->tree, op, 0, a, b, c);
    if (n->depth > FLEX_MAX_DEPTH)
        return fail(s, at,
                    "the expression is nested more than %d levels deep; group its parts "
                    "with brackets, or shorten it",
                    FLEX_MAX_DEPTH);
    if (s->p->tree.full) return fail(s, at, "the expression is too large");
    return n;
}

typedef struct Function {
    const char *name;
    FlexOp op;
    int arity;
    bool ints; /* keeps ints as they are; all others take floats */
} Function;

static const Function functions[] = {
    {"min", FX_MIN, 2, true},          {"max", FX_MAX, 2, true},      {"abs", FX_ABS, 1, true},
    {"where", FX_COND, 3, true},       {"floor", FX_FLOOR, 1, false}, {"ceil", FX_CEIL, 1, false},
    {"exp", FX_EXP, 1, false},         {"exp2", FX_EXP2, 1, false},   {"log", FX_LOG, 1, false},
    {"log2", FX_LOG2, 1, false},       {"sqrt", FX_SQRT, 1, false},   {"tanh", FX_TANH, 1, false},
    {"sigmoid", FX_SIGMOID, 1, false}, {"pow", FX_POW, 2, false},
};

static FlexNode *make_pow(Parser *s, int at, int exponent_at, FlexNode *base, FlexNode *exponent) {
    if (exponent->op != FX_LITERAL)
        return fail(s, exponent_at,
                    "the exponent of pow must be a constant; for another write "
                    "exp(exponent * log(base))");
    const float c = exponent->value.f;
    if (c == 0.0f) return flex_float(&s->p->tree, 1.0f);
    if (c == floorf(c) && fabsf(c) > 64.0f)
        return fail(s, exponent_at, "the exponent of pow may be -64 to 64 where it is whole");
    return make(s, at, FX_POW, base, exponent, NULL);
}

static FlexNode *parse_call(Parser *s, const Function *f, int at) {
    FlexNode *arg[3] = {NULL, NULL, NULL};
    int place[3] = {0, 0, 0};
    char what[64];
    snprintf(what, sizeof what, "after the function '%s'", f->name);
    expect(s, "(", what);
    for (int i = 0; i < f->arity && !s->failed; i++) {
        snprintf(what, sizeof what, "since '%s' takes %d arguments", f->name, f->arity);
        if (i) expect(s, ",", what);
        place[i] = s->now.at;
        arg[i] = parse_expression(s);
        if (!f->ints) arg[i] = flex_to_float(&s->p->tree, arg[i]);
    }
    snprintf(what, sizeof what, "after the last of %d argument%s of '%s'", f->arity,
             f->arity == 1 ? "" : "s", f->name);
    expect(s, ")", what);
    if (s->failed) return flex_int(&s->p->tree, 0);
    if (f->op == FX_POW) return make_pow(s, at, place[1], arg[0], arg[1]);
    return make(s, at, f->op, arg[0], arg[1], arg[2]);
}

/* value: the array's number; of a learned one, where it begins. */
static FlexNode *parse_index(Parser *s, const char *name, int at, int value,
                             const FlexLearned *learned) {
    char what[64];
    snprintf(what, sizeof what, "after the array '%s'", name);
    expect(s, "[", what);
    const int index_at = s->now.at;
    FlexNode *index = parse_expression(s);
    expect(s, "]", "after the index");
    if (s->failed) return index;
    if (index->type != FLEX_INT)
        return fail(s, index_at, "an index must be an int, and this is a float");
    FlexTree *t = &s->p->tree;
    t->at = at;
    if (!learned) return flex_node(t, FX_INDEX, value, index, NULL, NULL);
    if (index->asks & (ASKS_SCORE | ASKS_LEARNED))
        return fail(s, index_at,
                    "the index of a learned array may ask neither the score nor a learned array");
    return flex_node(t, FX_LOAD, value, index, flex_int(t, learned->length), NULL);
}

static FlexNode *parse_learned(Parser *s, const FlexLearned *a, int at) {
    if (!s->score_allowed)
        return fail(s, at, "a mask cannot ask a learned array; '%s' is for --score", a->name);
    return parse_index(s, a->name, at, a->begin, a);
}

static bool is_text(const char *text, const char *name, int length) {
    return (int)strlen(text) == length && !strncmp(text, name, (size_t)length);
}

static const char *const masks[] = {"full",   "causal",   "frame", "frame_causal",
                                    "window", "document", "padded"};

bool flex_is_word(const char *name) {
    static const char *const words[] = {"b", "h", "q", "k", "score", "doc"};
    const int length = (int)strlen(name);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (is_text(words[i], name, length)) return true;
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++)
        if (is_text(masks[i], name, length)) return true;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (is_text(functions[i].name, name, length)) return true;
    return false;
}

static FlexNode *unknown_name(Parser *s, const char *name, int length, int at) {
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++)
        if (is_text(masks[i], name, length))
            return fail(s, at,
                        "'%s' is no name in an expression; masks by name (full, causal, "
                        "frame-causal, window:W, document:LEN) join with '&' to each other "
                        "alone",
                        masks[i]);
    char arrays[(FLEX_MAX_ARRAYS + FLEX_MAX_LEARNED) * (FLEX_NAME + 2) + 1] = "";
    for (int i = 0; i < s->p->n_arrays; i++) {
        strcat(arrays, ", ");
        strcat(arrays, s->p->name[i]);
    }
    for (int i = 0; s->score_allowed && i < s->p->n_learned; i++) {
        strcat(arrays, ", ");
        strcat(arrays, s->p->learned[i].name);
    }
    return fail(s, at, "unknown name '%.*s'; an expression knows b, h, q, k%s%s%s",
                length > 40 ? 40 : length, name, s->score_allowed ? ", score" : "", arrays,
                " and the functions min, max, abs, where, floor, ceil, exp, exp2, log, log2, sqrt, "
                "tanh, sigmoid, pow");
}

static FlexNode *parse_name(Parser *s) {
    const int at = s->now.at, length = s->now.length;
    const char *name = s->text + at;
    static const struct {
        char name;
        FlexOp op;
    } leaves[] = {{'b', FX_BATCH}, {'h', FX_HEAD}, {'q', FX_QUERY}, {'k', FX_KEY}};
    next(s);
    for (int i = 0; i < 4; i++)
        if (length == 1 && name[0] == leaves[i].name) return flex_leaf(&s->p->tree, leaves[i].op);
    if (length == 5 && !strncmp(name, "score", 5)) {
        if (s->score_allowed) return flex_leaf(&s->p->tree, FX_SCORE);
        return fail(s, at,
                    "a mask cannot ask the score; only b, h, q, k and arrays are known "
                    "before the scores are");
    }
    for (int i = 0; i < s->p->n_arrays; i++)
        if (is_text(s->p->name[i], name, length)) return parse_index(s, s->p->name[i], at, i, NULL);
    for (int i = 0; i < s->p->n_learned; i++)
        if (is_text(s->p->learned[i].name, name, length))
            return parse_learned(s, &s->p->learned[i], at);
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (is_text(functions[i].name, name, length)) return parse_call(s, &functions[i], at);
    return unknown_name(s, name, length, at);
}

/* Counts a level of nesting; the caller takes it back. */
static bool too_deep(Parser *s) {
    if (++s->depth > FLEX_MAX_DEPTH)
        fail(s, s->now.at, "more than %d brackets, choices and signs are open here",
             FLEX_MAX_DEPTH);
    return s->failed;
}

static FlexNode *parse_signed(Parser *s, int at, FlexOp op) {
    FlexNode *n = too_deep(s) ? NULL : parse_unary(s);
    s->depth--;
    return s->failed ? flex_int(&s->p->tree, 0) : make(s, at, op, n, NULL, NULL);
}

static FlexNode *parse_unary(Parser *s) {
    const int at = s->now.at;
    const Token t = s->now;
    if (t.kind == TOKEN_INT || t.kind == TOKEN_FLOAT) {
        next(s);
        return t.kind == TOKEN_INT ? flex_int(&s->p->tree, t.i) : flex_float(&s->p->tree, t.f);
    }
    if (t.kind == TOKEN_NAME) return parse_name(s);
    if (take(s, "-")) return parse_signed(s, at, FX_NEG);
    if (take(s, "!")) return parse_signed(s, at, FX_NOT);
    if (take(s, "(")) {
        FlexNode *n = parse_expression(s);
        char what[64];
        snprintf(what, sizeof what, "for the '(' at column %d", at + 1);
        expect(s, ")", what);
        return n;
    }
    char here[80];
    found(s, here, sizeof here);
    return fail(s, at, "expected a value, but %s", here);
}

typedef struct Operator {
    const char *sign;
    FlexOp op;
    int binds; /* the higher the tighter */
    bool ints; /* takes ints only */
    bool chains;
} Operator;

static const Operator operators[] = {
    {"||", FX_OR, 1, false, true},    {"&&", FX_AND, 2, false, true},
    {"|", FX_BIT_OR, 3, true, true},  {"^", FX_BIT_XOR, 4, true, true},
    {"&", FX_BIT_AND, 5, true, true}, {"==", FX_EQ, 6, false, false},
    {"!=", FX_NE, 6, false, false},   {"<=", FX_LE, 7, false, false},
    {">=", FX_GE, 7, false, false},   {"<", FX_LT, 7, false, false},
    {">", FX_GT, 7, false, false},    {"+", FX_ADD, 8, false, true},
    {"-", FX_SUB, 8, false, true},    {"*", FX_MUL, 9, false, true},
    {"/", FX_DIV, 9, false, true},    {"%", FX_MOD, 9, true, true},
};

static const Operator *operator_here(const Parser *s) {
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
        if (at_sign(s, operators[i].sign)) return &operators[i];
    return NULL;
}

/* Operators that bind at least as tightly as `least`; those of one level group from the left. */
static FlexNode *parse_binary(Parser *s, int least) {
    FlexNode *left = parse_unary(s);
    const Operator *before = NULL;
    for (const Operator *o; !s->failed && (o = operator_here(s)) && o->binds >= least;) {
        const int at = s->now.at;
        if (before && before->binds == o->binds && !o->chains)
            return fail(s, at,
                        "comparisons do not chain: C would compare a truth value (0 or 1) "
                        "with the third; write a %s b && b %s c",
                        before->sign, o->sign);
        next(s);
        FlexNode *right = parse_binary(s, o->binds + 1);
        if (s->failed) break;
        if (o->ints && (left->type == FLEX_FLOAT || right->type == FLEX_FLOAT))
            return fail(s, at, "'%s' takes ints, and its %s side is a float", o->sign,
                        left->type == FLEX_FLOAT ? "left" : "right");
        if ((o->op == FX_DIV || o->op == FX_MOD) && left->type == FLEX_INT &&
            right->type == FLEX_INT && flex_is_literal(right, 0))
            return fail(s, at, "division by zero");
        left = make(s, at, o->op, left, right, NULL);
        before = o;
    }
    return left;
}

static FlexNode *parse_expression(Parser *s) {
    if (too_deep(s)) return flex_int(&s->p->tree, 0);
    FlexNode *n = parse_binary(s, 0);
    const int at = s->now.at;
    if (take(s, "?")) {
        FlexNode *yes = parse_expression(s);
        char what[64];
        snprintf(what, sizeof what, "for the '?' at column %d", at + 1);
        expect(s, ":", what);
        FlexNode *no = parse_expression(s);
        if (!s->failed) n = make(s, at, FX_COND, n, yes, no);
    }
    s->depth--;
    return n;
}

int flex_caret(Err *e, const char *option, const char *text, int at, const char *sentence) {
    char shown[FLEX_MAX_TEXT + 1];
    int n = 0;
    for (; n < FLEX_MAX_TEXT && text[n]; n++) {
        const char c = text[n];
        shown[n] = c == '\t' || c == '\n' ? ' ' : c >= ' ' && c < 127 ? c : '?';
    }
    shown[n] = '\0';
    /* a long text is cut, so that the caret stays in sight */
    const int from = at > 150 ? at - 100 : 0;
    return err_set(e, "%s: %s\n  %s%.200s%s\n  %*s^", option, sentence, from ? "..." : "",
                   shown + from, n - from > 200 ? "..." : "", at - from + (from ? 3 : 0), "");
}

FlexNode *flex_parse_expression(FlexProgram *p, const char *option, const char *text,
                                bool score_allowed, Err *e) {
    if (strlen(text) > FLEX_MAX_TEXT) {
        err_set(e, "%s: the expression has %zu characters; at most %d are read", option,
                strlen(text), FLEX_MAX_TEXT);
        return NULL;
    }
    Parser s = {.p = p, .text = text, .score_allowed = score_allowed};
    next(&s);
    FlexNode *n = parse_expression(&s);
    if (!s.failed && s.now.kind != TOKEN_END) {
        char here[80];
        found(&s, here, sizeof here);
        fail(&s, s.now.at, "expected an operator or the end, but %s", here);
    }
    if (!s.failed && !score_allowed && n->type == FLEX_FLOAT)
        fail(&s, 0, "a mask says yes or no, and this is a float; compare it with something");
    if (s.failed) {
        flex_caret(e, option, text, s.failed_at, s.sentence);
        return NULL;
    }
    return score_allowed ? flex_to_float(&p->tree, n) : n;
}
