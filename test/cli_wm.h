/* test/cli.h for train_wm. */
#ifndef TEST_CLI_WM_H
#define TEST_CLI_WM_H

#define CLI_PROGRAM "train_wm"

#include "test/cli.h"

/* A model that makes a step in milliseconds. Nothing periodic: a test asks for what it looks at. */
#define CLI_MODEL "--d-model", "32", "--n-heads", "2", "--n-blocks", "1", "--frames", "3"
#define CLI_SMALL                                                                             \
    CLI_MODEL, "--batch", "2", "--steps", "4", "--eval-clips", "2", "--threads", "2",         \
        "--eval-every", "0", "--save-every", "0", "--sample-steps", "1", "--actions", "up*2", \
        "--warmup", "2"

#endif
