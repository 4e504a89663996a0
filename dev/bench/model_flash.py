#!/usr/bin/env python3
"""What the flash kernels should reach on an H200, by counting: python dev/bench/model_flash.py

For a layer of the world model's paper preset at batch 32 (H 6, T 1950, D 64, bf16): for each unit
of a multiprocessor the clocks that a tile keeps it busy, from the kernels' tile sizes; the work
that tiles add to what a mask shows; how evenly blocks fill the multiprocessors. Three times come
of it:

  bound     the busiest unit alone: everything else is hidden behind it
  expected  of the other units' clocks as much is hidden as in the kernel of the same design whose
            figure is published: FlashAttention-3 for sm_90a, FlashAttention-2 for mma.sync
  serial    nothing is hidden: one unit after the other

So "expected" is no claim of our own about overlap: it says what tile sizes, mask and balance make
of what others have reached. These are predictions. dev/gpu_check measures; until it has, they are
the only figures, and where a measurement misses them either the count or the kernel is wrong.

Units are clocks of a multiprocessor; FLOP counts are 4 D a pair forward and 10 D backward.
"""
import argparse
import heapq
from bisect import bisect_right
from dataclasses import dataclass, replace

# ---- the machine: an H200, by its data sheet and what microbenchmarks found ----
SMS = 132
CLOCK = 1.7e9  # Hz, under load; the boost clock of 1.98e9 is not held by matrix products
TENSOR_FLOP = 4096  # dense bf16, a clock: 64 x N x 16 by wgmma takes N / 2 clocks
MMA_SYNC_FLOP = 2850  # what mma.sync reaches of it
EXPONENTIALS = 16  # a clock
ISSUES = 4  # instructions of a warp, a clock
SHARED_BYTES = 128  # a clock
L2_BYTES = 5.5e12 / SMS / CLOCK  # a clock and multiprocessor: reads that hit, as measured on H100s
HBM_BYTES = 4.3e12  # a second, as a copy reaches
LAUNCH_S = 3e-6

# ---- the layer ----
BATCH, HEADS, TOKENS, FRAME, D = 32, 6, 1950, 65, 64
BF16, F32 = 2, 4
L2_HEADS = (16 << 20) // (2 * TOKENS * D * BF16) + 1  # whose keys and values stay in L2

# ---- what others have reached: TFLOP/s at D 64, T about 2k on an H100, from their papers ----
PUBLISHED = {
    "FlashAttention-3": {"forward, full": 460, "forward, causal": 371, "backward": 422},
    "cuDNN": {"forward, full": 395, "forward, causal": 334, "backward": 395},
    "FlashAttention-2": {"forward, full": 320, "forward, causal": 260, "backward": 260},
}
GOAL_MS = {"forward": 0.26, "backward": 0.65}


@dataclass
class Kernel:
    """A tile is `rows` of the side a block owns by `cols` of the side it walks along. Masks are
    rounded to `group` owned by `step` walked: what a warp or warpgroup skips."""
    name: str
    direction: str
    rows: int
    cols: int
    group: int
    step: int
    blocks: int  # of one multiprocessor at a time
    given: str  # how items go to blocks: "taken", "dealt" or "snake", see makespan()
    item: int  # clocks of a work item that its tiles do not hide: first loads, last stores
    like: float  # TFLOP/s of the published kernel of this design, without a mask
    clocks: dict  # unit -> clocks of one tile
    chunks: int = 0  # items that a head's tiles of keys are cut into; 0: a tile is an item
    together: int = BATCH * HEADS  # heads whose items are started before those of others

    def flop(self):
        return (4 if self.direction == "forward" else 10) * D * self.rows * self.cols


def portable_forward():
    """flash_forward_bf16: 4 warps of 32 queries, 64 keys. Its fragments: 48 of 512 bytes a warp."""
    rows, cols, warps = 128, 64, 4
    loads = 2 * cols * D * BF16
    return Kernel("portable", "forward", rows, cols, 32, 32, 3, "taken", 2500, 320, {
        "tensor": 4 * D * rows * cols / MMA_SYNC_FLOP,
        "exp": rows * cols / EXPONENTIALS,
        "shared": (warps * 48 * 512 + loads) / SHARED_BYTES,
        "issue": warps * 2 * 370 / ISSUES,  # read off the machine code: 370 for 32 keys
        "L2": loads / L2_BYTES}, together=L2_HEADS)


def portable_backward():
    """flash_backward_bf16: 8 warps of 16 keys, 64 queries; 88 fragments a warp; sums of dq are read
    and written in L2 by threads."""
    rows, cols, warps = 128, 64, 8
    loads, sums = 2 * cols * D * BF16, 2 * cols * D * F32
    return Kernel("portable", "backward", rows, cols, 16, 64, 1, "taken", 2500, 260, {
        "tensor": 10 * D * rows * cols / MMA_SYNC_FLOP,
        "exp": rows * cols / EXPONENTIALS,
        "shared": (warps * 88 * 512 + rows * cols * BF16 + loads) / SHARED_BYTES,
        "issue": warps * 800 / ISSUES,
        "L2": (loads + sums) / L2_BYTES}, chunks=2)


def wgmma_bytes(n, k, a_shared):
    """Shared memory that a product of 64 x n over k reads: B, and A where it is not in
    registers."""
    return (n + (64 if a_shared else 0)) * k * BF16


def hopper_forward():
    """flash_forward_sm90: three warpgroups of 64 queries, tiles of 128 keys whose second half is
    left out where it shows nothing. S = q k' with both in shared memory, p in registers. Items are
    drawn."""
    rows, cols, groups = 192, 128, 3
    loads = 2 * cols * D * BF16
    elements = rows * cols
    # a score: maximum, scale and subtract, exponential, sum; half a conversion; all the rest 10 %
    instructions = 1.1 * 4.5 * elements / 32
    return Kernel("sm_90a", "forward", rows, cols, 64, 64, 1, "taken", 2500, 460, {
        "tensor": 4 * D * elements / TENSOR_FLOP,
        "exp": elements / EXPONENTIALS,
        "shared": (groups * (wgmma_bytes(cols, D, True) + wgmma_bytes(D, cols, False)) + loads)
        / SHARED_BYTES,
        "issue": instructions / ISSUES,
        "L2": loads / L2_BYTES}, together=L2_HEADS)


def hopper_backward():
    """flash_backward_sm90: two warpgroups of 64 keys, tiles of 64 queries. A of s', dp', dv and dk
    in registers, ds through shared memory for dq, which one of the warpgroups makes, and whose sum
    goes to L2 by bulk reduction. Each warp reads lse and delta of all queries."""
    rows, cols, groups = 128, 64, 2
    loads, sums = 2 * cols * D * BF16, cols * D * F32
    elements = rows * cols
    products = groups * 2 * (wgmma_bytes(cols, D, False) + wgmma_bytes(D, cols, False)) \
        + wgmma_bytes(D, rows, True)
    row_sums = groups * 4 * 8 * cols * 2 * F32  # a warp's lanes ask for 8 times what there is
    # an element: argument and exponential of p, two for ds, two halves of conversions; stores 10 %
    instructions = 1.1 * 5 * elements / 32
    return Kernel("sm_90a", "backward", rows, cols, 64, 64, 1, "taken", 4000, 422, {
        "tensor": 10 * D * elements / TENSOR_FLOP,
        "exp": elements / EXPONENTIALS,
        "shared": (products + elements * BF16 + 2 * sums + loads + row_sums) / SHARED_BYTES,
        "issue": instructions / ISSUES,
        "L2": (loads + sums) / L2_BYTES}, chunks=2)  # what a reduction reads stays in L2


# ---- masks: query i sees the keys lo .. hi - 1 ----


def intervals(mask):
    if mask == "full":
        return [(0, TOKENS)] * TOKENS
    if mask == "causal":
        return [(0, i + 1) for i in range(TOKENS)]
    return [(0, (i // FRAME + 1) * FRAME) for i in range(TOKENS)]  # frame-causal


def turned(sees):
    """Which queries see key j, as an interval: of masks whose limits do not fall."""
    return [(bisect_right([hi for _, hi in sees], j), bisect_right([lo for lo, _ in sees], j))
            for j in range(TOKENS)]


def walked(sees, first, count, step):
    """How much of the other side these `count` owned rows visit, in steps."""
    some = sees[first:first + count]
    low, high = min(lo for lo, _ in some), max(hi for _, hi in some)
    return -(-high // step) * step - low // step * step


def visited(sees, first, rows, group, step):
    """The pairs that `rows` owned rows visit, a group of them at a time."""
    return sum(group * walked(sees, at, group, step)
               for at in range(first, min(first + rows, TOKENS), group))


def items(kernel, sees):
    """The pairs of each work item of one head."""
    work = [visited(sees, first, kernel.rows, kernel.group, kernel.step)
            for first in range(0, TOKENS, kernel.rows)]
    each = -(-len(work) // kernel.chunks) if kernel.chunks else 1
    return [sum(work[first:first + each]) for first in range(0, len(work), each)]


# ---- time ----


def exposed(kernel):
    """The share of the clocks of all units but the busiest that the published figure leaves
    unhidden."""
    took = kernel.flop() / (kernel.like * 1e12 / SMS / CLOCK)
    most = max(kernel.clocks.values())
    return (took - most) / (sum(kernel.clocks.values()) - most)


def tile_clocks(kernel, share):
    most = max(kernel.clocks.values())
    return most + share * (sum(kernel.clocks.values()) - most)


def in_order(kernel, work):
    """All items: a group of heads after the other, in each the longest first."""
    heads = BATCH * HEADS
    return [pairs for first in range(0, heads, kernel.together)
            for pairs in sorted(work, reverse=True)
            for _ in range(min(kernel.together, heads - first))]


def makespan(times, slots, given):
    """taken: each item goes to the block that is free first. A persistent grid knows its items
    beforehand: dealt: block s has s, s + slots, ...; snake: every other round backwards."""
    free = [0.0] * slots
    for i, t in enumerate(times):
        lap, slot = divmod(i, slots)
        if given == "taken":
            heapq.heapreplace(free, free[0] + t)
        else:
            free[slots - 1 - slot if given == "snake" and lap % 2 else slot] += t
    return max(free)


def row_of(kernel, mask):
    sees = intervals(mask)
    visible = sum(hi - lo for lo, hi in sees)
    work = items(kernel, turned(sees) if kernel.direction == "backward" else sees)
    gflop = (4 if kernel.direction == "forward" else 10) * D * visible * BATCH * HEADS / 1e9
    result = {"gflop": gflop, "work": sum(work) / visible}
    for name, share in (("bound", 0), ("expected", exposed(kernel)), ("serial", 1)):
        pair = tile_clocks(kernel, share) / (kernel.rows * kernel.cols)
        # a multiprocessor's blocks share its units, so that each takes as many times as long
        times = [pairs * pair * kernel.blocks + kernel.item for pairs in in_order(kernel, work)]
        clocks = makespan(times, SMS * kernel.blocks, kernel.given)
        result[name] = 1e3 * (clocks / CLOCK + LAUNCH_S)
        result["balance"] = clocks / (sum(times) / SMS / kernel.blocks)
    return result


def print_table(head, rows):
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    for r in [head, *rows]:
        print("| " + " | ".join(c.ljust(w) for c, w in zip(r, widths)) + " |")
        if r is head:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    print()


def variants():
    """The Hopper kernels with one decision changed: what each is worth."""
    forward, backward = hopper_forward(), hopper_backward()
    return [("forward, sm_90a", forward),
            ("  whole tiles of 128 keys only", replace(forward, step=128)),
            ("  limits for all 192 queries, not for 64", replace(forward, group=192, step=128)),
            ("  items dealt beforehand", replace(forward, given="dealt")),
            ("  dealt, every other round backwards", replace(forward, given="snake")),
            ("  longest first over all heads", replace(forward, together=BATCH * HEADS)),
            ("backward, sm_90a", backward),
            ("  queries skipped by 128", replace(backward, step=128)),
            ("  limits for all 128 keys, not for 64", replace(backward, group=128)),
            ("  three chunks a head", replace(backward, chunks=3)),
            ("  four chunks a head", replace(backward, chunks=4)),
            ("  a tile of keys an item", replace(backward, chunks=0)),
            ("  longest first in groups of heads", replace(backward, together=L2_HEADS))]


def print_visits(masks):
    shapes = [(32, 32), (64, 64), (64, 128), (128, 64), (128, 128), (192, 128)]
    lines = []
    for mask in masks:
        sees = intervals(mask)
        visible = sum(hi - lo for lo, hi in sees)
        lines.append([mask, *(f"{visited(sees, 0, TOKENS, *s) / visible:.3f}" for s in shapes)])
    print_table(["visited / visible pairs", *(f"{g} x {s}" for g, s in shapes)], lines)


def print_times(masks, kernels):
    lines = []
    for mask in masks:
        for k in kernels:
            r = row_of(k, mask)
            lines.append([mask, f"{k.direction}, {k.name}", f"{r['gflop']:.1f}",
                          f"{r['work']:.3f}", f"{r['balance']:.2f}",
                          *(f"{r[n]:.3f}, {r['gflop'] / r[n]:.0f}"
                            for n in ("bound", "expected", "serial")),
                          max(k.clocks, key=k.clocks.get),
                          f"{GOAL_MS[k.direction]} ms" if mask == "frame-causal" else ""])
    print_table(["mask", "kernel", "GFLOP visible", "work", "balance", "bound: ms, TFLOP/s",
                 "expected", "serial", "busiest", "goal"], lines)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--mask", default="frame-causal,causal,full",
                   help="comma between: frame-causal, causal, full")
    masks = p.parse_args().mask.split(",")
    kernels = [portable_forward(), hopper_forward(), portable_backward(), hopper_backward()]
    units = list(kernels[0].clocks)
    print_table(["clocks a tile", "tile", *units, "sum", "hidden of all but the most"],
                [[f"{k.direction}, {k.name}", f"{k.rows} x {k.cols}",
                  *(f"{k.clocks[u]:.0f}" for u in units), f"{sum(k.clocks.values()):.0f}",
                  f"{100 * (1 - exposed(k)):.0f} %"] for k in kernels])
    print_visits(masks)
    print_times(masks, kernels)
    lines = []
    for name, k in variants():
        r = row_of(k, masks[0])
        lines.append([name, f"{r['work']:.3f}", f"{r['balance']:.2f}", f"{r['expected']:.3f}"])
    print_table([f"{masks[0]}: one decision changed", "work", "balance", "expected ms"], lines)
    names = ("forward, full", "forward, causal", "backward")
    print_table(["published, H100, D 64, T 2k: TFLOP/s", *names],
                [[who, *(str(figures[n]) for n in names)] for who, figures in PUBLISHED.items()])
    moved = BATCH * HEADS * TOKENS * D * BF16
    print(f"Device memory at least: forward {4 * moved / HBM_BYTES * 1e3:.3f} ms, backward "
          f"{8 * moved / HBM_BYTES * 1e3:.3f} ms.")


if __name__ == "__main__":
    main()
