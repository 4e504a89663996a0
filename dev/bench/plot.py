"""Draws what runs and benchmarks leave: PNG and SVG beside each other.

    python dev/bench/plot.py losses RUN... [--out NAME]     RUN: a run's folder or its metrics.jsonl
    python dev/bench/plot.py backends FILE [--out NAME]     FILE: attn_all.json of a run with
                                                            --attn all, or the JSON of
                                                            bench_attention or peer_attention.py

Needs matplotlib: python3 -m venv VENV && VENV/bin/pip install matplotlib
"""
import argparse
import json
import sys
from pathlib import Path

PANELS = [("loss", "training loss"), ("held_out_loss", "held-out loss"),
          ("grad_norm", "gradient norm"), ("lr", "learning rate")]

# (forward, backward or both, unit): what the files call the two bars of a backend
BARS = [("attn_forward_ms", "attn_backward_ms"), ("forward_ms", "backward_ms"),
        ("forward_ms", "forward_backward_ms")]


def read_lines(run):
    path = Path(run)
    path = path / "metrics.jsonl" if path.is_dir() else path
    try:
        with open(path) as f:
            return [json.loads(line) for line in f if line.strip()]
    except OSError as e:
        sys.exit(f"{path}: {e.strerror}; give a run's folder or its metrics.jsonl")
    except json.JSONDecodeError as e:
        sys.exit(f"{path}: no lines of JSON ({e})")


def smooth(values, share=0.02):
    """Mean over a window around each step, so that a curve of single batches can be read."""
    half = int(share * len(values)) // 2
    windows = (values[max(0, i - half):i + half + 1] for i in range(len(values)))
    return [sum(w) / len(w) for w in windows]


def losses(plt, runs):
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    for run in runs:
        lines = read_lines(run)
        name = Path(run).name if Path(run).is_dir() else Path(run).parent.name or run
        for axis, (key, title) in zip(axes.flat, PANELS):
            points = [(x["step"], x[key]) for x in lines if x.get(key) is not None]
            axis.set_title(title, loc="left", fontsize=10)
            if not points:
                continue
            steps, values = zip(*points)
            if key == "loss":
                axis.plot(steps, values, alpha=0.25, linewidth=0.7)
                axis.plot(steps, smooth(values), color=axis.lines[-1].get_color(), label=name)
            else:
                axis.plot(steps, values, marker="o" * (key == "held_out_loss"), markersize=3,
                          label=name)
            if key != "lr":
                axis.set_yscale("log")
    for axis in axes[1]:
        axis.set_xlabel("step")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    return figure


def backends(plt, path):
    try:
        rows = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as e:
        sys.exit(f"{path}: {e}; give the JSON of --attn all, bench_attention or peer_attention.py")
    for forward, other in BARS:
        have = [r for r in rows if r.get(forward) is not None]
        if have and any(r.get(other) is not None for r in have):
            break
    else:
        sys.exit(f"{path}: holds no row with forward and backward times")
    whole_step = "step_ms" in have[0]
    figure, axes = plt.subplots(1, 2 if whole_step else 1, squeeze=False, layout="constrained",
                                figsize=(11 if whole_step else 8, 1 + 0.45 * len(have)))
    names, places = [r["backend"] for r in have], range(len(have))
    first = [r[forward] for r in have]
    # stacked; where a file has both passes in one figure, the backward is the rest
    rest = [(r.get(other) or 0) - (r[forward] if other == "forward_backward_ms" else 0)
            for r in have]
    rest = [max(0, x) for x in rest]
    axes[0, 0].barh(places, first, label="forward")
    axes[0, 0].barh(places, rest, left=first, label="backward")
    axes[0, 0].set_xlabel("attention, ms")
    axes[0, 0].legend(fontsize=8)
    if whole_step:
        axes[0, 1].barh(places, [r["step_ms"] for r in have], color="tab:gray")
        axes[0, 1].set_xlabel("whole training step, ms")
        for i, r in enumerate(have):
            axes[0, 1].text(r["step_ms"], i, f" {r['speed_up']:.2f} x", va="center", fontsize=8)
        axes[0, 1].margins(x=0.12)
    for axis in axes.flat:
        axis.set_yticks(list(places), names)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
    return figure


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("what", choices=["losses", "backends"])
    p.add_argument("paths", nargs="+")
    p.add_argument("--out", help="file name without suffix; by default beside the first path")
    o = p.parse_args()
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        sys.exit("this needs matplotlib: python3 -m venv VENV && VENV/bin/pip install matplotlib, "
                 "then VENV/bin/python dev/bench/plot.py ...")
    if o.what == "backends" and len(o.paths) != 1:
        sys.exit("backends draws one file")
    figure = losses(plt, o.paths) if o.what == "losses" else backends(plt, o.paths[0])
    first = Path(o.paths[0])
    base = o.out or str((first if first.is_dir() else first.parent) / o.what)
    for suffix in (".png", ".svg"):
        figure.savefig(base + suffix, dpi=130)
        print(base + suffix)


if __name__ == "__main__":
    main()
