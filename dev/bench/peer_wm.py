"""A training step of the world model: this project's train_wm and PyTorch, in turns in one run.

    make bench-peer PYTHON=VENV/bin/python
    python dev/bench/peer_wm.py [--device cuda] [--batch 1] [--steps 3] [--threads 2] [--rounds 2]
                                [--torch sdpa+compile,sdpa,vanilla] [--attn sdpa,flex,vanilla]
                                [--preset paper] [--seconds N] [--json FILE]

Each run is a process of its own, so that peak memory is its own too. The first step of each
does not count. Forward and backward are compared; the update is shown where there is one. On a GPU:
batch 32 in bf16, PyTorch's by autocast, times by events on the queue.
"""
import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import peer

PRESETS = {"paper": dict(d_model=384, n_heads=6, n_blocks=8, n_window=30),
           "toy-wm": dict(d_model=320, n_heads=20, n_blocks=8, n_window=30),
           "tiny": dict(d_model=128, n_heads=4, n_blocks=4, n_window=10)}


def worker(o):
    """One of PyTorch's ways: writes its medians to o.json."""
    torch = peer.need_torch(o.device)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ref"))
    from wm_model import WorldModel, flow_loss
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    attn, *options = o.worker.split("+")
    model = WorldModel(PRESETS[o.preset], attn=attn)
    if attn == "flex" and o.device == "cuda":  # its mask is made on the CPU, and autocast passes
        model.block_mask = model.block_mask.to("cuda")  # over flex: q and k come out of RoPE wider
        flex = model.flex
        model.flex = lambda q, k, v, **how: flex(q.to(v.dtype), k.to(v.dtype), v, **how)
    run = torch.compile(model) if "compile" in options else model
    frames = torch.rand(o.batch, model.cfg["n_window"], 3, 24, 24) * 2 - 1
    noise, ts = torch.randn_like(frames), torch.rand(frames.shape[:2])
    actions = torch.randint(0, 4, frames.shape[:2])
    forward, backward, why = [], [], ""
    try:
        for _ in range(o.steps + 1):
            model.zero_grad()
            marks = [mark(torch)]
            with torch.autocast(o.device, torch.bfloat16, enabled=o.device == "cuda"):
                loss, _ = flow_loss(run, frames, noise, ts, actions)
            marks.append(mark(torch))
            loss.backward()
            marks.append(mark(torch))
            forward.append(between_ms(torch, *marks[:2]))
            backward.append(between_ms(torch, *marks[1:]))
    except Exception as e:
        why = peer.reason(e)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if o.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    with open(o.json, "w") as f:
        json.dump({"forward_ms": peer.median(forward[1:]), "backward_ms": peer.median(backward[1:]),
                   "peak_mib": peak, "why": why, "torch": torch.__version__}, f)


def mark(torch):
    """A moment: the host's, or one on the GPU's queue."""
    if torch.get_default_device().type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between_ms(torch, begin, end):
    if torch.get_default_device().type == "cpu":
        return (end - begin) * 1e3
    end.synchronize()
    return begin.elapsed_time(end)


def time_torch(o, way):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "torch.json")
        keep = dict(PEER_ALLOCATOR="kept", MALLOC_MMAP_THRESHOLD_="4000000000",
                    MALLOC_TRIM_THRESHOLD_="8000000000", MALLOC_TOP_PAD_="500000000")
        command = ["env", *(f"{k}={v}" for k, v in keep.items()), sys.executable, __file__,
                   "--worker", way, "--batch", str(o.batch), "--steps", str(o.steps), "--threads",
                   str(o.threads), "--preset", o.preset, "--device", o.device, "--json", path]
        peer.child(command)
        with open(path) as f:
            return json.load(f)


def time_ours(o, attn):
    with tempfile.TemporaryDirectory() as folder:
        peak = peer.child(["./train_wm", "--preset", o.preset, "--batch", str(o.batch), "--steps",
                           str(o.steps + 1), "--attn", attn, "--threads", str(o.threads),
                           "--device", o.device,
                           "--eval-every", "0", "--save-every", "0", "--out", folder])
        with open(os.path.join(folder, "metrics.jsonl")) as f:
            lines = [json.loads(line) for line in f]
    lines = [line for line in lines if "forward_ms" in line][1:]
    keys = ("forward_ms", "backward_ms", "update_ms")
    return {**{k: peer.median([line[k] for line in lines]) for k in keys},
            "peak_mib": peak if o.device == "cpu" else None}  # the process's own says nothing


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--batch", type=int, help="1; cuda: 32")
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--preset", default="paper", choices=PRESETS)
    p.add_argument("--torch", help="sdpa+compile,sdpa,vanilla; cuda: sdpa+compile,flex+compile")
    p.add_argument("--attn", help="sdpa,flex,vanilla; cuda: sdpa,flex")
    peer.add_device(p)
    p.add_argument("--worker", help=argparse.SUPPRESS)
    p.add_argument("--json")
    o = p.parse_args()
    cuda = o.device == "cuda"
    o.batch = o.batch or (32 if cuda else 1)
    o.torch = o.torch or ("sdpa+compile,flex+compile" if cuda else "sdpa+compile,sdpa,vanilla")
    o.attn = o.attn or ("sdpa,flex" if cuda else "sdpa,flex,vanilla")
    if o.worker:
        return worker(o)
    peer.need_torch(o.device)
    rounds, clock = {}, peer.Clock(o.seconds)
    for i in range(o.rounds):
        print(f"round {i + 1} of {o.rounds}", file=sys.stderr)
        for name in filter(None, o.attn.split(",")):
            if clock.allows(name):
                rounds.setdefault(name, []).append(time_ours(o, name))
        for name in filter(None, o.torch.split(",")):
            if clock.allows(f"torch {name}"):
                rounds.setdefault(f"torch {name}", []).append(time_torch(o, name))
    rows = []
    for name, results in rounds.items():
        row = {"backend": name, "preset": o.preset, "batch": o.batch, "threads": o.threads,
               "device": o.device, "dtype": "bfloat16" if cuda else "float32"}
        for key in ("forward_ms", "backward_ms", "update_ms", "peak_mib"):
            row[key] = peer.median([r[key] for r in results if r.get(key) is not None])
        row["why"] = results[0].get("why", "")
        both = row["backward_ms"] is not None
        row["forward_backward_ms"] = row["forward_ms"] + row["backward_ms"] if both else None
        rows.append(row)
    best = min((r["forward_backward_ms"] for r in rows
                if r["backend"].startswith("torch ") and r["forward_backward_ms"]), default=None)
    print(f"preset {o.preset}, batch {o.batch}, {o.device}, {'bf16' if cuda else 'float32'}, "
          f"{o.threads} threads; medians of {o.rounds} rounds in turns, {o.steps} steps each")
    peer.table(["backend", "forward ms", "backward ms", "both ms", "of PyTorch's best", "update ms",
                "peak MiB"],
               [[r["backend"], r["forward_ms"], r["backward_ms"], r["forward_backward_ms"],
                 r["forward_backward_ms"] / best if best and r["forward_backward_ms"] else None,
                 r["update_ms"], r["peak_mib"]] for r in rows])
    for r in rows:
        if r["why"]:
            print(f"{r['backend']}: {r['why']}")
    clock.report()
    peer.save(o.json, rows)
    return None


if __name__ == "__main__":
    main()
