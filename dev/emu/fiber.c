#include "dev/emu/fiber.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "dev/emu/parts.h"

enum { STACK_BYTES = 256 << 10, GUARD_BYTES = 4 << 10 };

static char *stacks; /* EMU_MAX_THREADS of them, each with a guard below */
static int free_stacks[EMU_MAX_THREADS], n_free;
static EmuFiber host;

static char *stack_low(int stack) {
    return stacks + (size_t)stack * (STACK_BYTES + GUARD_BYTES) + GUARD_BYTES;
}

static void make_stacks(void) {
    const size_t bytes = (size_t)EMU_MAX_THREADS * (STACK_BYTES + GUARD_BYTES);
    stacks = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (stacks == MAP_FAILED) {
        fprintf(stderr, "emu: no memory for the stacks of %d threads\n", EMU_MAX_THREADS);
        abort();
    }
    for (int i = 0; i < EMU_MAX_THREADS; i++) {
        mprotect(stack_low(i) - GUARD_BYTES, GUARD_BYTES, PROT_NONE);
        free_stacks[n_free++] = EMU_MAX_THREADS - 1 - i;
    }
}

/* ---- AddressSanitizer wants to know which stack is in use ---- */

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>

static const void *host_low;
static size_t host_bytes;
static bool from_host; /* the switch under way */

static void forget_frames(int stack) { /* of a thread that ended: the outermost, never left */
    enum { OUTERMOST = 8 << 10 };
    __asan_unpoison_memory_region(stack_low(stack) + STACK_BYTES - OUTERMOST, OUTERMOST);
}
static void leaving(EmuFiber *from, const EmuFiber *to, bool ended) {
    const bool home = to == &host;
    from_host = from == &host;
    __sanitizer_start_switch_fiber(ended ? NULL : &from->fake_stack,
                                   home ? host_low : stack_low(to->stack),
                                   home ? host_bytes : STACK_BYTES);
}
static void arrived(EmuFiber *self) {
    const void *low;
    size_t bytes;
    __sanitizer_finish_switch_fiber(self ? self->fake_stack : NULL, &low, &bytes);
    if (from_host) host_low = low, host_bytes = bytes;
}
#else
static void forget_frames(int stack) { (void)stack; }
static void leaving(EmuFiber *from, const EmuFiber *to, bool ended) {
    (void)from, (void)to, (void)ended;
}
static void arrived(EmuFiber *self) { (void)self; }
#endif

/* ---- the switch itself ---- */

static void first_steps(void) {
    arrived(NULL);
    emu_fiber_main();
}

#if defined __x86_64__
/* Saves what a call must keep on the stack in use and its top in *from; goes on at `to`. */
void emu_switch_stacks(void **from, void *to);
__asm__(
    ".text\n"
    ".p2align 4\n"
    "emu_switch_stacks:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n");

static void change(EmuFiber *from, EmuFiber *to) { emu_switch_stacks(&from->top, to->top); }

static void prepare(EmuFiber *f) {
    void **top = (void **)(stack_low(f->stack) + STACK_BYTES);
    *--top = NULL; /* as if called from nowhere: a function begins 8 off a multiple of 16 */
    *--top = (void *)(uintptr_t)first_steps;
    for (int i = 0; i < 6; i++) *--top = NULL;
    f->top = top;
}
#else
static ucontext_t contexts[EMU_MAX_THREADS], host_context;

static void change(EmuFiber *from, EmuFiber *to) { swapcontext(from->context, to->context); }

static void prepare(EmuFiber *f) {
    f->context = &contexts[f->stack];
    getcontext(f->context);
    f->context->uc_stack.ss_sp = stack_low(f->stack);
    f->context->uc_stack.ss_size = STACK_BYTES;
    f->context->uc_link = NULL;
    makecontext(f->context, first_steps, 0);
}
#endif

void emu_fiber_switch(EmuFiber *from, EmuFiber *to, bool ended) {
    emu_own_stack(stack_low(to->stack), STACK_BYTES);
    leaving(from, to, ended);
    change(from, to);
    arrived(from);
}

void emu_fiber_begin(EmuFiber *from, EmuFiber *to) {
    to->stack = free_stacks[--n_free];
    forget_frames(to->stack);
    prepare(to);
    emu_fiber_switch(from, to, false);
}

void emu_fiber_enter(EmuFiber *f) {
    if (!stacks) make_stacks();
#if !defined __x86_64__
    host.context = &host_context;
#endif
    emu_fiber_begin(&host, f);
    emu_own_everything();
}

void emu_fiber_leave(EmuFiber *from) {
    leaving(from, &host, true);
    change(from, &host);
}

void emu_fiber_drop(EmuFiber *f) { free_stacks[n_free++] = f->stack; }
