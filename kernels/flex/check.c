/* What can be wrong with an expression that is well formed: a division by zero, an index outside
 * its array, a query that sees nothing. All positions are tried once, when the program is made, so
 * that nothing can go wrong in a step. */
#include <stdio.h>
#include <string.h>

#include "kernels/flex/tree.h"

static int fault_sentence(const FlexProgram *p, const char *option, const char *text,
                          const FlexFault *f, Err *e) {
    char sentence[256], where[96];
    const char *name = NULL; /* of the array whose index is at fault */
    int length = 0;
    snprintf(where, sizeof where, "at b %d, h %d, q %d, k %d", f->b, f->h, f->q, f->k);
    if (f->node->op == FX_INDEX)
        name = p->name[f->node->value.i], length = p->env.length[f->node->value.i];
    for (int i = 0; f->node->op == FX_LOAD && i < p->n_learned; i++)
        if (p->learned[i].begin == f->node->value.i)
            name = p->learned[i].name, length = p->learned[i].length;
    if (name)
        snprintf(sentence, sizeof sentence,
                 "%s[%d] is outside the array, whose elements are 0 to %d, %s; guard it with ?: or "
                 "min and max",
                 name, f->index, length - 1, where);
    else
        snprintf(sentence, sizeof sentence, "division by zero %s; guard it with ?:", where);
    return flex_caret(e, option, text, f->node->at, sentence);
}

/* The first fault of one query's row, for keys in order. */
static bool row_faults(const FlexProgram *p, const FlexNode *x, int b, int h, int q,
                       FlexFault *fault) {
    FlexLanes lanes;
    for (int k = 0; k < p->T && !fault->node; k += FLEX_LANES) {
        const int n = p->T - k < FLEX_LANES ? p->T - k : FLEX_LANES;
        flex_eval(&p->env, x, b, h, q, k, n, NULL, &lanes, fault);
    }
    return fault->node;
}

static int check_faults(const FlexProgram *p, const char *option, const char *text,
                        const FlexNode *x, Err *e) {
    if (!x || !x->may_fault) return 0;
    const int B = x->asks & ASKS_BATCH ? p->B : 1, H = x->asks & ASKS_HEAD ? p->H : 1;
    for (int b = 0; b < B; b++) {
        for (int h = 0; h < H; h++) {
            for (int q = 0; q < (x->asks & ASKS_QUERY ? p->T : 1); q++) {
                FlexFault fault = {NULL, 0, 0, 0, 0, 0};
                if (row_faults(p, x, b, h, q, &fault))
                    return fault_sentence(p, option, text, &fault, e);
            }
        }
    }
    return 0;
}

/* Most masks show a query the keys about itself, so the search begins there. */
static bool sees_something(const FlexProgram *p, int b, int h, int q) {
    unsigned char sees[FLEX_LANES];
    const int blocks = (p->T + FLEX_LANES - 1) / FLEX_LANES, own = q / FLEX_LANES;
    for (int i = 0; i < blocks; i++) {
        const int k = (own - i + (own < i ? blocks : 0)) * FLEX_LANES;
        const int n = p->T - k < FLEX_LANES ? p->T - k : FLEX_LANES;
        flex_eval_mask_row(p, b, h, q, k, n, sees);
        if (memchr(sees, 1, (size_t)n)) return true;
    }
    return false;
}

static int check_queries(const FlexProgram *p, Err *e) {
    if (!p->mask) return 0;
    const bool per_batch = flex_mask_asks_batch(p), per_head = flex_mask_asks_head(p);
    for (int b = 0; b < (per_batch ? p->B : 1); b++) {
        for (int h = 0; h < (per_head ? p->H : 1); h++) {
            for (int q = 0; q < p->T; q++) {
                if (sees_something(p, b, h, q)) continue;
                char sentence[256], at_b[32] = "", at_h[32] = "";
                if (per_batch) snprintf(at_b, sizeof at_b, ", b %d", b);
                if (per_head) snprintf(at_h, sizeof at_h, ", h %d", h);
                snprintf(sentence, sizeof sentence,
                         "the mask leaves the query at position q %d%s%s no key to see (keys are 0 "
                         "to %d); let it see at least itself, for example with '|| k == q'",
                         q, at_b, at_h, p->T - 1);
                return flex_caret(e, "--mask", p->mask_text, 0, sentence);
            }
        }
    }
    return 0;
}

int flex_check(const FlexProgram *p, Err *e) {
    if (check_faults(p, "--mask", p->mask_text, p->mask, e)) return -1;
    if (check_faults(p, "--score", p->score_text, p->score, e)) return -1;
    return check_queries(p, e);
}
