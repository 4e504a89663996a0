"""Attention at the world model's shape: this project's backends and PyTorch's, in turns in one run.

    make bench-peer PYTHON=VENV/bin/python
    python dev/bench/peer_attention.py [--batch 1] [--threads 2] [--rounds 3] [--repeats 7]
                                       [--only TEXT] [--ours ./bench_attention] [--json FILE]

A round runs ./bench_attention, then each of PyTorch's ways; the figures are medians over rounds of
medians over repeats. Float32, frame-causal mask; `is_causal` is another, cheaper mask, beside it.
"""
import argparse
import json
import os
import sys
import tempfile

import peer

# Which of PyTorch's ways does the work of which backend.
COUNTERPART = {"sdpa": "torch sdpa, mask", "vanilla": "torch vanilla, compiled",
               "flex": "torch flex, block mask", "flex-dense": "torch flex, dense"}


def torch_ways(torch, tokens, frame):
    import torch.nn.functional as F
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    at = torch.arange(tokens) // frame
    sees = at[:, None] >= at[None]

    def seen(b, h, q, k):
        return (q >= k) | (q // frame == k // frame)

    def masked_score(score, b, h, q, k):
        return torch.where(seen(b, h, q, k), score, -float("inf"))

    def vanilla(q, k, v):
        return (q @ k.transpose(-1, -2)).masked_fill(~sees, float("-inf")).softmax(-1) @ v

    def sdpa(q, k, v, **how):
        return F.scaled_dot_product_attention(q, k, v, scale=1.0, **how)

    flex = torch.compile(flex_attention)
    blocks = create_block_mask(seen, None, None, tokens, tokens, device="cpu")
    return {
        "torch sdpa, mask": lambda q, k, v: sdpa(q, k, v, attn_mask=sees),
        "torch sdpa, is_causal": lambda q, k, v: sdpa(q, k, v, is_causal=True),
        "torch vanilla": vanilla,
        "torch vanilla, compiled": torch.compile(vanilla),
        "torch flex, block mask": lambda q, k, v: flex(q, k, v, block_mask=blocks, scale=1.0),
        "torch flex, dense": lambda q, k, v: flex(q, k, v, score_mod=masked_score, scale=1.0),
    }


def time_torch(torch, way, inputs, repeats):
    """Forward without gradients, then forward and backward; and why not, where it cannot."""
    q, k, v = inputs
    result = {"forward_ms": None, "forward_backward_ms": None}

    def forward():
        with torch.no_grad():
            way(q.detach(), k.detach(), v.detach())

    def both():
        way(q, k, v).backward(gradient)
        q.grad = k.grad = v.grad = None

    gradient = torch.randn_like(q)
    for name, f in (("forward_ms", forward), ("forward_backward_ms", both)):
        try:
            result[name] = peer.median(peer.times_ms(f, repeats))
        except Exception as e:  # what PyTorch cannot do is a result too
            result[f"no_{name}"] = str(e).strip().splitlines()[0][:120]
    return result


def time_ours(program, case, threads, repeats):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bench.json")
        peer.child([program, "--case", "wm", "--batch", str(case["batch"]), "--threads",
                    str(threads), "--repeats", str(repeats), "--json", path])
        with open(path) as f:
            rows = json.load(f)
    return {row["backend"]: {"forward_ms": row["forward_ms"],
                             "forward_backward_ms": row["forward_ms"] + row["backward_ms"]}
            for row in rows if row.get("forward_ms") is not None}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--only", default="", help="PyTorch's ways that contain this text")
    p.add_argument("--ours", default="./bench_attention", help="'' leaves ours out")
    p.add_argument("--json")
    o = p.parse_args()
    peer.keep_freed_memory()
    torch = peer.need_torch()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    case = {"batch": o.batch, "heads": 6, "tokens": 1950, "head": 64, "frame": 65}
    shape = (o.batch, case["heads"], case["tokens"], case["head"])
    norm = torch.nn.functional.rms_norm
    q, k = (norm(torch.randn(shape), (case["head"],)).requires_grad_() for _ in "qk")
    v = torch.randn(shape, requires_grad=True)
    ways = torch_ways(torch, case["tokens"], case["frame"])
    ways = {n: w for n, w in ways.items() if o.only in n}
    rounds = {}
    for i in range(o.rounds):
        print(f"round {i + 1} of {o.rounds}", file=sys.stderr)
        if o.ours:
            for name, r in time_ours(o.ours, case, o.threads, o.repeats).items():
                rounds.setdefault(name, []).append(r)
        for name, way in ways.items():
            rounds.setdefault(name, []).append(time_torch(torch, way, (q, k, v), o.repeats))

    rows = []
    for name, results in rounds.items():
        row = {"backend": name, "dtype": "float32", **case, "threads": o.threads}
        for key in ("forward_ms", "forward_backward_ms"):
            row[key] = peer.median([r[key] for r in results if r[key] is not None])
            why = [r[f"no_{key}"] for r in results if f"no_{key}" in r]
            if why:
                row[f"no_{key}"] = why[0]
        rows.append(row)
    found = {row["backend"]: row for row in rows}
    for name, other in COUNTERPART.items():
        for key in ("forward", "forward_backward"):
            mine, theirs = (found.get(n, {}).get(f"{key}_ms") for n in (name, other))
            if mine and theirs:
                found[name][f"{key}_times_faster"] = theirs / mine
    print(f"PyTorch {torch.__version__}, {o.threads} threads, float32, B {o.batch}, H 6, T 1950, "
          f"D 64, frame-causal; medians of {o.rounds} rounds in turns")
    peer.table(["backend", "forward ms", "forward + backward ms", "times faster than", "forward",
                "both"],
               [[r["backend"], r["forward_ms"], r["forward_backward_ms"],
                 COUNTERPART.get(r["backend"], ""), r.get("forward_times_faster", ""),
                 r.get("forward_backward_times_faster", "")] for r in rows])
    for row in rows:
        for key in ("forward", "forward_backward"):
            if f"no_{key}_ms" in row:
                print(f"{row['backend']}: no {key.replace('_', ' + ')}: {row[f'no_{key}_ms']}")
    peer.save(o.json, rows)


if __name__ == "__main__":
    main()
