#!/usr/bin/env python3
"""What a run of dev/gpu_check says, as tables: python dev/bench/gpu_tables.py [RESULTS.json]

The goals, asked and measured, beside what model_flash.py expects; and the notes' two tables, theirs
beside ours and PyTorch's of the same run. What was not measured is a dash. Figures come from the
parts of gpu.json by their names, which dev/gpu_check gives.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import model_flash
import peer

ATTENTION, CACHED, BESIDE = "attention, bf16", "attention, cached start", "attention beside PyTorch"
WM_LAYER, WM_LAYER_BESIDE = "world model's layer", "world model's layer beside PyTorch"
ICE_LAYER, ICE_LAYER_BESIDE = "IceCube's layer", "IceCube's layer beside PyTorch"
WM_STEP_BESIDE, ICE_STEP = "world model's step beside PyTorch", "IceCube's step, batch 128"

# The notes' figures: 100 forward calls of one layer, seconds, at batch 32 on a GPU with 48 GB; one
# IceCube layer forward, ms, at 4, 8 and 16 events on an H100 with 96 GB.
NOTES_WM = {"SDPA, compiled": "3.39", "materialised, compiled": "6.68",
            "flex": "about 20, or out of memory"}
NOTES_ICE = {"loop": ("33.3", "73.7", "137"), "padded": ("20.6", "23.0", "40.8"),
             "flex, dense": ("436", "55.1", "23.4"),
             "flex, block mask": ("out of memory",) * 3}


class Figures:
    """Rows of a run's parts: figures.get(part, key, backend=.., batch=..) -> a number or None."""

    def __init__(self, summary):
        self.parts = {p["part"]: p.get("figures") or [] for p in summary["parts"]}

    def rows(self, part):
        figures = self.parts.get(part, [])
        return figures if isinstance(figures, list) else [figures]

    def get(self, part, key, **which):
        for row in self.rows(part):
            if all(row.get(k) == v for k, v in which.items()):
                return row.get(key)
        return None

    def least(self, part, key, wanted):
        return min((r[key] for r in self.rows(part) if wanted(r) and r.get(key)), default=None)


def ratio(a, b):
    return a / b if a and b else None


def of_torch(row):
    """One of PyTorch's ways that shows what frame-causal shows."""
    return row["backend"].startswith("torch ") and not row["backend"].endswith("is_causal")


def rate(figures, direction, backend):
    """TFLOP/s"""
    return ratio(figures.get(ATTENTION, f"{direction}_gflop", backend=backend),
                 figures.get(ATTENTION, f"{direction}_ms", backend=backend))


def beside(figures, part, key, backend="sdpa"):
    """How many times the time of ours PyTorch's best takes."""
    return ratio(figures.least(part, key, of_torch), figures.get(part, key, backend=backend))


def expected(kernel):
    """ms and TFLOP/s of a layer, counted"""
    r = model_flash.row_of(kernel, "frame-causal")
    return r["expected"], r["gflop"] / r["expected"]


def goals(figures):
    """(what, measured or None, expected or None, asked, whether more is better)"""
    def ms(direction, backend):
        return figures.get(ATTENTION, f"{direction}_ms", backend=backend)

    def flex_over_sdpa(direction):
        return ratio(ms(direction, "flex"), ms(direction, "sdpa"))

    portable = "sdpa, portable, {}, TFLOP/s"
    return [
        ("sdpa, forward, ms", ms("forward", "sdpa"), expected(model_flash.hopper_forward())[0],
         0.26, False),
        ("sdpa, backward, ms", ms("backward", "sdpa"), expected(model_flash.hopper_backward())[0],
         0.65, False),
        (portable.format("forward"), rate(figures, "forward", "sdpa-portable"),
         expected(model_flash.portable_forward())[1], 260, True),
        (portable.format("backward"), rate(figures, "backward", "sdpa-portable"),
         expected(model_flash.portable_backward())[1], 260, True),
        ("PyTorch's best / sdpa, forward", beside(figures, BESIDE, "forward_ms"), None, 1, True),
        ("PyTorch's best / sdpa, both passes", beside(figures, BESIDE, "forward_backward_ms"),
         None, 1, True),
        ("flex / sdpa, forward", flex_over_sdpa("forward"), None, 1.05, False),
        ("flex / sdpa, backward", flex_over_sdpa("backward"), None, 1.05, False),
        ("a plan, us", figures.get(ATTENTION, "plan_us", backend="flex"), None, 20, False),
        ("flex, first compile, ms", figures.get(ATTENTION, "prepare_ms", backend="flex"), None,
         3000, False),
        ("flex, cached start, ms", figures.get(CACHED, "prepare_ms", backend="flex"), None, 50,
         False),
        ("world model's step, PyTorch's best / ours",
         beside(figures, WM_STEP_BESIDE, "forward_backward_ms"), None, 1.3, True),
        ("IceCube, batch 128, training, events/s",
         figures.get(ICE_STEP, "train_events_per_s"), None, 5200, True),
    ]


def goal_rows(figures):
    rows = []
    for what, measured, counted, asked, more in goals(figures):
        met = None if measured is None else measured >= asked if more else measured <= asked
        rows.append({"goal": what, "measured": measured, "expected": counted,
                     "asked": f"at {'least' if more else 'most'} {asked:g}", "met": met})
    return rows


def print_goals(figures):
    peer.table(["goal", "measured", "expected", "asked", ""],
               [[r["goal"], r["measured"], r["expected"], r["asked"],
                 {True: "met", False: "missed", None: "not measured"}[r["met"]]]
                for r in goal_rows(figures)])


def print_notes_wm(figures):
    def ours(backend):
        ms = figures.get(WM_LAYER, "forward_ms", backend=backend)
        return ms and ms / 10  # 100 calls, in seconds

    def torch(way):
        ms = figures.get(WM_LAYER_BESIDE, "forward_ms", backend=way)
        return ms and ms / 10

    peer.table(
        ["world model's layer, B 32, forward, 100 calls, s", "the notes, 48 GB GPU", "ours",
         "PyTorch, same run"],
        [["sdpa", NOTES_WM["SDPA, compiled"], ours("sdpa"), torch("torch sdpa, mask")],
         ["sdpa, portable kernels", None, ours("sdpa-portable"), None],
         ["vanilla", NOTES_WM["materialised, compiled"], ours("vanilla"),
          torch("torch vanilla, compiled")],
         ["flex", NOTES_WM["flex"], ours("flex"), torch("torch flex, block mask")],
         ["flex, dense", None, ours("flex-dense"), None]])


def print_notes_ice(figures):
    def ours(backend):
        return [figures.get(ICE_LAYER, "forward_ms", backend=backend, batch=b) for b in (4, 8, 16)]

    def torch(begin, end=""):
        return [figures.least(ICE_LAYER_BESIDE, "forward_ms",
                              lambda r, b=b: r.get("batch") == b and
                              r["backend"].startswith(f"torch {begin}") and
                              r["backend"].endswith(end)) for b in (4, 8, 16)]

    none = (None,) * 3
    peer.table(
        ["IceCube's layer, forward, ms", *(f"{who}, {b} events" for who in
                                           ("the notes", "ours", "PyTorch") for b in (4, 8, 16))],
        [["loop", *NOTES_ICE["loop"], *ours("loop"), *torch("loop")],
         ["padded", *NOTES_ICE["padded"], *ours("padded"), *torch("padded")],
         ["flex, dense", *NOTES_ICE["flex, dense"], *ours("flex-dense"), *torch("flex", "dense")],
         ["flex", *NOTES_ICE["flex, block mask"], *ours("flex"), *torch("flex", "block mask")],
         ["sdpa", *none, *ours("sdpa"), *none]])


def print_all(summary):
    figures = Figures(summary)
    for show in (print_goals, print_notes_wm, print_notes_ice):
        print()
        show(figures)


def main():
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "dev/bench/results/gpu.json")
    if not path.exists():
        sys.exit(f"{path} is not there; make gpu-check writes it on a machine with a GPU")
    summary = json.loads(path.read_text())
    print(f"{summary['device']}, {summary['date']}, {summary['commit']}")
    print_all(summary)


if __name__ == "__main__":
    main()
