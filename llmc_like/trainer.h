/* The training loop of every program: options -> data -> plan -> loop (forward, backward, update,
 * evaluation, checkpoint). It knows no model: what a program is, is a table of functions.
 *
 *   static const TrainProgram program = {.name = "train_wm", .open = open_data, ...};
 *   int main(..) { ...; return trainer_main(&p.trainer, &program, &p, argc, argv); }
 *
 * A step is `accumulate` batches of the loader. A batch is made of parts, one forward and backward
 * each, and a part is a share of its batch (the shares of a batch add up to 1):
 *
 *   loss = 1 / accumulate  sum over batches  sum over parts  share x loss(part)
 *
 * Where parts are left out, loss and gradient are the means over the rest; where nothing is left of
 * a step it makes no update, and the run goes on.
 *
 * Each function gets the program as `self`, and fails with -1 and a sentence. They are called in
 * this order:
 *
 *   the command line   options, preset, adopt (where a checkpoint is given), check, open
 *   the plan           first, shapes, model (dry), parts, loss (dry), memory, model_free
 *   training           shapes, model, then make (in the loader's thread), parts, share, loss,
 *                      and evaluate
 *   or a use           first, shapes, model, run_use
 *   the end            model_free, close: after a failure, too, on whatever there is */
#ifndef LLMC_LIKE_TRAINER_H
#define LLMC_LIKE_TRAINER_H

#include "kernels/attention.h"
#include "llmc_like/checkpoint.h"
#include "llmc_like/loader.h"
#include "llmc_like/optim.h"
#include "llmc_like/resume.h"
#include "llmc_like/run.h"
#include "llmc_like/train_options.h"

/* One forward. */
typedef struct TrainPart {
    const void *batch; /* the loader's; in a plan what `first` gave */
    int i;             /* its part i */
    uint32_t step;     /* of training, and */
    uint32_t number;   /* of the step's parts: what random numbers are keyed by */
} TrainPart;

/* Builds a part's graph in the context, whose step has begun; returns its output. */
typedef Tensor *(*TrainForward)(void *self, Ctx *c, const TrainPart *part);

enum { TRAIN_SHAPES = 2, PART_TEXT = 256 };

typedef struct TrainProgram {
    const char *name, *summary; /* "train_wm", and what the help says it does */
    const char *use;            /* the option of TrainSettings.use: "sample" */
    const char *examples;       /* what batches are made of: "clips" */
    const char *unit[RUN_UNITS];
    bool radians;           /* RunLog's */
    const char *calmer;     /* what to try where training diverges: "a smaller --lr" */
    const char *leaner;     /* what to try where it needs more memory than there is */
    const char *const *own; /* options about one run of the program, NULL at the end: a checkpoint
                               does not bring them back */
    int (*options)(void *self, Option *row); /* all rows, train_options' included; how many */
    int (*preset)(void *self, Err *e);       /* gives options the defaults of the preset named */
    /* Takes over the sizes of a checkpoint's config where the user named none; NULL: it has none.
     */
    int (*adopt)(void *self, const char *config, Err *e);
    /* Checks sizes before anything is opened, since making a mask takes time that grows with them.
     * *least: how many numbers of activations a step has at the least; the trainer asks whether the
     * device has the memory. NULL: no check. */
    int (*check)(void *self, double *least, Err *e);
    /* Checks what was asked, opens the data, makes masks (mask_set_build with Trainer.cache), and
     * fills in Trainer's texts and the rates of Trainer.optim. */
    int (*open)(void *self, Err *e);

    /* Makes the model for this context (a dry one counts only), and sets Trainer.params. */
    int (*model)(void *self, const Ctx *c, bool training, Err *e);
    void (*model_free)(void *self);
    /* The calls of attention that a first batch leads to, one for each mask, each with the mask
     * ready; how many. "auto" measures the first one. */
    int (*shapes)(void *self, const void *first, AttnArgs *shape);

    size_t (*batch_bytes)(void *self); /* of the loader's buffers */
    LoaderFn make;
    LoaderFree batch_free;                    /* NULL: a buffer owns nothing */
    const void *(*first)(void *self, Err *e); /* a batch to plan with; NULL: loss plans without */
    int (*parts)(void *self, const void *batch); /* how many; 0: nothing is left of it */
    /* Of part i; adds what rates count to units. */
    double (*share)(void *self, const void *batch, int i, double units[RUN_UNITS]);
    TrainForward loss; /* -> float64 (1) */
    /* Parts need more or less memory, so each gets its room when it comes; else the plan has
     * counted one for all. */
    bool parts_differ;
    /* Of a part that does not fit, into text: "event 7 with 178000 pulses on 2015 DOMs". */
    void (*part_name)(void *self, const void *batch, int i, char text[PART_TEXT]);

    void (*memory)(void *self, StepPlan *plan); /* rows beyond the model's and the step's */
    /* *loss: the held-out loss that the best checkpoints are kept by; set where it was measured,
     * also where something fails afterwards. */
    int (*evaluate)(void *self, int64_t step, double *loss, Err *e);
    /* With TrainSettings.use: the model has its parameters, file its metadata. */
    int (*run_use)(void *self, const StFile *file, Err *e);
    void (*close)(void *self);
} TrainProgram;

enum { TRAIN_PATH = 4096, TRAIN_META = 4 };

/* The key of Trainer.meta whose value says what data there is: a run goes on with the same alone.
 */
#define DATA_KEY "data"

/* A step that was started: its figures, as far as they are known, and what the rest comes from. */
enum { STEP_LOSSES = 1024 };

typedef struct StepRun {
    int64_t step;
    StepFigures f;
    const double *loss[STEP_LOSSES], *norm; /* where n losses and the norm will be (ctx_fetch) */
    double share[STEP_LOSSES];              /* of the loss's part */
    int n;
    uint64_t mark; /* behind all of it */
} StepRun;

typedef struct Trainer {
    const TrainProgram *program;
    void *self;
    TrainSettings *s;
    Option row[TRAIN_MAX_OPTIONS];
    Options options;
    char cache[TRAIN_PATH]; /* for the code that flex compiles */
    char resume[RESUME_PATH], out[RESUME_PATH];

    Ctx c, dry;        /* dry: counts for trainer_make_room */
    const void *first; /* what the program's `first` gave; NULL: nothing */
    ParamTable *params;
    Optim optim;
    Loader loader;
    RunLog log;
    StepPlan plan;
    StepRun run[2];
    int in_flight;                          /* steps started and not finished */
    double attn_forward_s, attn_backward_s; /* until the last step that was finished */
    CheckpointKeeper keeper;
    int64_t first_step;
    int64_t n_left_out; /* parts without room, see skip_large */
    bool diverged;      /* the parameters are spoilt: nothing is saved any more */

    /* the program's: */
    char model[256], data[300]; /* lines of the banner */
    char rates[128];            /* "Muon 0.02, Adam 0.0003", likewise */
    char config[1024];          /* the model's, as JSON */
    MetaPair meta[TRAIN_META];  /* more for the checkpoints */
    int n_meta;
    double lr; /* the rate that lines show */
    bool device_is_auto;
    bool mask_is_expression; /* then a checkpoint does not carry it */
    bool skip_large;         /* parts that do not fit are left out, named and counted */
} Trainer;

/* The whole program, from the command line to the exit status. Zero *t and set t->cache before. */
int trainer_main(Trainer *t, const TrainProgram *program, TrainSettings *s, void *self, int argc,
                 char **argv);

/* The user's folder for compiled code into t->cache: XDG_CACHE_HOME and HOME, or NULL, as main
 * found them. */
void trainer_set_cache(Trainer *t, const char *xdg_cache_home, const char *home);

/* Opens a context for what the options name. */
int trainer_context(const Trainer *t, Ctx *c, bool dry, Err *e);

/* Flops of the matrix products that the context has seen. */
double trainer_flops(const Ctx *c);

/* Starts the step: `accumulate` batches, then the update, but for a step of which nothing was kept:
 * f.kept is 0. Where the device has a queue it runs on behind the host. -1: the loader failed, or a
 * part found no room. */
int trainer_start(Trainer *t, int64_t step, StepRun *r, Err *e);

/* Waits for the step, and for its figures. -1: a loss or gradient is no number. */
int trainer_finish(Trainer *t, StepRun *r, Err *e);

/* Sees to it that the arenas hold `forward` of this part (and its backward, where the context
 * records); where they must grow, they grow as arena_reserve has it. -1 and a sentence that names
 * the part where the system has not that much: nothing has happened then. */
int trainer_make_room(Trainer *t, TrainForward forward, const TrainPart *part, Err *e);

/* The sentence of a loss that is no number; returns -1, and nothing is saved any more. what:
 * "held-out loss". */
int trainer_diverged(Trainer *t, int64_t step, const char *what, double value, Err *e);

#endif
