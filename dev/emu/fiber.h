/* Fibers: stacks that the threads of a block run on, and the switch between them. */
#ifndef DEV_EMU_FIBER_H
#define DEV_EMU_FIBER_H

#include <stdbool.h>
#include <stdint.h>

#if !defined __x86_64__
#include <ucontext.h>
#endif

/* A thread that has begun. Moves with its struct copied while it runs. */
typedef struct EmuFiber {
#if defined __x86_64__
    void *top; /* where its registers are saved, while it does not run */
#else
    ucontext_t *context;
#endif
    int stack;        /* which of the stacks */
    void *fake_stack; /* AddressSanitizer's */
} EmuFiber;

/* From the host: runs emu_fiber_main on a free stack as f; returns after emu_fiber_leave. */
void emu_fiber_enter(EmuFiber *f);

/* From the running fiber `from`, which goes on when somebody switches to it: a new fiber `to` */
void emu_fiber_begin(EmuFiber *from, EmuFiber *to);

/* ... one that waits; ended: from never goes on */
void emu_fiber_switch(EmuFiber *from, EmuFiber *to, bool ended);

/* ... or the host; from never goes on. */
void emu_fiber_leave(EmuFiber *from);

/* Gives the stack of a fiber that never goes on back, right before it is left. */
void emu_fiber_drop(EmuFiber *f);

/* The thread's work; in launch.c. Does not return. */
void emu_fiber_main(void);

#endif
