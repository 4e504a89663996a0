"""Attention at the world model's shape: this project's backends and PyTorch's, in turns in one run.

    make bench-peer PYTHON=VENV/bin/python
    python dev/bench/peer_attention.py [--device cuda] [--batch 1] [--threads 2] [--rounds 3]
                                       [--repeats 7] [--only TEXT] [--ours ./bench_attention]
                                       [--layer] [--seconds N] [--json FILE]

A round runs ./bench_attention, then each of PyTorch's ways; the figures are medians over rounds of
medians over repeats. Float32 (cuda: bf16, batch 32, each of SDPA's backends), frame-causal mask;
`is_causal` is another, cheaper mask, beside it. --layer: the model's whole attention layer, with
projections, norms of q and k, and rotation, forward; PyTorch's compiled as one.
"""
import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import peer

# Which of PyTorch's ways do the work of which backend: how their names begin and end.
COUNTERPART = {"sdpa": ("torch sdpa", ", mask"), "vanilla": ("torch vanilla", ", compiled"),
               "flex": ("torch flex", "block mask"), "flex-dense": ("torch flex", "dense")}


def counterpart(name, found):
    """The fastest of PyTorch's ways that do what our backend does; None where there is none."""
    begin, end = COUNTERPART.get(name, (None, None))
    rows = [r for n, r in found.items() if begin and n.startswith(begin) and n.endswith(end)]
    return min(rows, key=lambda r: r["forward_backward_ms"] or r["forward_ms"] or float("inf"),
               default=None)


def sdpa_ways(torch, sdpa, sees):
    """SDPA as PyTorch chooses its backend, and on a GPU with each of them."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def only(backend, **how):
        def way(q, k, v):
            with sdpa_kernel(backend):
                return sdpa(q, k, v, **how)
        return way

    ways = {"torch sdpa, mask": lambda q, k, v: sdpa(q, k, v, attn_mask=sees),
            "torch sdpa, is_causal": lambda q, k, v: sdpa(q, k, v, is_causal=True)}
    if torch.get_default_device().type == "cuda":
        for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION),
                              ("flash", SDPBackend.FLASH_ATTENTION),
                              ("efficient", SDPBackend.EFFICIENT_ATTENTION),
                              ("math", SDPBackend.MATH)):
            ways[f"torch sdpa {name}, mask"] = only(backend, attn_mask=sees)
            ways[f"torch sdpa {name}, is_causal"] = only(backend, is_causal=True)
    return ways


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
    blocks = create_block_mask(seen, None, None, tokens, tokens,
                               device=torch.get_default_device().type)
    return {
        **sdpa_ways(torch, sdpa, sees),
        "torch vanilla": vanilla,
        "torch vanilla, compiled": torch.compile(vanilla),
        "torch flex, block mask": lambda q, k, v: flex(q, k, v, block_mask=blocks, scale=1.0),
        "torch flex, dense": lambda q, k, v: flex(q, k, v, score_mod=masked_score, scale=1.0),
    }


def layer_ways(torch, o, ways):
    """The layer of dev/ref's model with those of the ways that a trainer would take, compiled."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ref"))
    from wm_model import DEFAULTS, Attention, Rope
    layer, rope = Attention(DEFAULTS).to(peer.dtype_of(torch, o.device)), Rope(DEFAULTS)

    def compiled(way):  # rotation is in float32 and makes q and k wider
        return torch.compile(lambda x: layer(
            x, rope, lambda q, k, v, _: way(q.to(v.dtype), k.to(v.dtype), v)))

    names = ("torch sdpa, mask", "torch vanilla, compiled", "torch flex, block mask")
    return {n: compiled(ways[n]) for n in names if n in ways}


def time_torch(torch, way, inputs, repeats, backward):
    """Forward without gradients, then forward and backward; and why not, where it cannot."""
    result = {"forward_ms": None, "forward_backward_ms": None}

    def forward():
        with torch.no_grad():
            way(*(x.detach() for x in inputs))

    def both():
        way(*inputs).backward(gradient)
        for x in inputs:
            x.grad = None

    gradient = torch.randn_like(inputs[0])
    for name, f in (("forward_ms", forward), ("forward_backward_ms", both))[:1 + backward]:
        try:
            result[name] = peer.median(peer.times_ms(f, repeats))
        except Exception as e:  # what PyTorch cannot do is a result too
            result[f"no_{name}"] = peer.reason(e)
    return result


def time_ours(o, case):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bench.json")
        peer.child([o.ours, "--case", "wm-layer" if o.layer else "wm", "--batch",
                    str(case["batch"]), "--device", o.device, "--threads", str(o.threads),
                    "--repeats", str(o.repeats), "--cache", "build/bench/flex", "--json", path]
                   + ["--portable"] * (o.device == "cuda"))
        with open(path) as f:
            rows = json.load(f)
    return {row["backend"]: {"forward_ms": row["forward_ms"],
                             "forward_backward_ms": row["forward_ms"] + row["backward_ms"]
                             if "backward_ms" in row else None}
            for row in rows if row.get("forward_ms") is not None}


def merge(rounds, common):
    """A row a backend: the medians over its rounds, and how much faster than its counterpart."""
    rows = []
    for name, results in rounds.items():
        row = {"backend": name, **common}
        for key in ("forward_ms", "forward_backward_ms"):
            row[key] = peer.median([r[key] for r in results if r[key] is not None])
            why = [r[f"no_{key}"] for r in results if f"no_{key}" in r]
            if why:
                row[f"no_{key}"] = why[0]
        rows.append(row)
    found = {row["backend"]: row for row in rows}
    for row in rows:
        other = counterpart(row["backend"], found)
        row["counterpart"] = other["backend"] if other else ""
        for key in ("forward", "forward_backward"):
            mine, theirs = (r and r[f"{key}_ms"] for r in (row, other))
            if mine and theirs:
                row[f"{key}_times_faster"] = theirs / mine
    return rows


def report(torch, o, case, rows):
    frames = case["tokens"] // case["frame"]
    pairs = case["frame"] ** 2 * frames * (frames + 1) / 2 * case["heads"] * case["batch"]
    work = 4e-9 * pairs * case["head"]  # TFLOP of the visible pairs, over ms
    if o.layer:  # and of the projections
        work += 8e-9 * case["batch"] * case["tokens"] * (case["heads"] * case["head"]) ** 2
    print(f"PyTorch {torch.__version__}, {o.device}, {rows[0]['dtype']}, {o.threads} threads, "
          f"B {case['batch']}, H 6, T 1950, D 64, frame-causal{', the whole layer' * o.layer}; "
          f"medians of {o.rounds} rounds in turns; TFLOP/s by pairs that frame-causal shows")
    peer.table(["backend", "forward ms", "TFLOP/s", "forward + backward ms", "TFLOP/s",
                "times faster than", "forward", "both"],
               [[r["backend"], r["forward_ms"], r["forward_ms"] and work / r["forward_ms"],
                 r["forward_backward_ms"],
                 r["forward_backward_ms"] and 3.5 * work / r["forward_backward_ms"],
                 r["counterpart"], r.get("forward_times_faster", ""),
                 r.get("forward_backward_times_faster", "")] for r in rows])
    for row in rows:
        for key in ("forward", "forward_backward"):
            if f"no_{key}_ms" in row:
                print(f"{row['backend']}: no {key.replace('_', ' + ')}: {row[f'no_{key}_ms']}")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--batch", type=int, help="1; cuda: 32")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--only", default="", help="PyTorch's ways that contain this text")
    p.add_argument("--layer", action="store_true", help="with projections, norms and rotation")
    p.add_argument("--ours", default="./bench_attention", help="'' leaves ours out")
    peer.add_device(p)
    p.add_argument("--json")
    o = p.parse_args()
    peer.keep_freed_memory()
    torch, clock = peer.need_torch(o.device), peer.Clock(o.seconds)
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    case = {"batch": o.batch or (32 if o.device == "cuda" else 1), "heads": 6, "tokens": 1950,
            "head": 64, "frame": 65}
    dtype = peer.dtype_of(torch, o.device)
    shape = (case["batch"], case["heads"], case["tokens"], case["head"])
    norm = torch.nn.functional.rms_norm
    q, k = (norm(torch.randn(shape), (case["head"],)).to(dtype).requires_grad_() for _ in "qk")
    v = torch.randn(shape).to(dtype).requires_grad_()
    ways = torch_ways(torch, case["tokens"], case["frame"])
    inputs = (q, k, v)
    if o.layer:
        ways = layer_ways(torch, o, ways)
        inputs = (torch.randn(shape[0], shape[2], shape[1] * shape[3]).to(dtype),)
    ways = {n: w for n, w in ways.items() if o.only in n}
    rounds = {}
    for i in range(o.rounds):
        print(f"round {i + 1} of {o.rounds}", file=sys.stderr)
        if o.ours and clock.allows("ours"):
            for name, r in time_ours(o, case).items():
                rounds.setdefault(name, []).append(r)
        for name, way in ways.items():
            if clock.allows(name):
                rounds.setdefault(name, []).append(
                    time_torch(torch, way, inputs, o.repeats, not o.layer))
    rows = merge(rounds, {"dtype": str(dtype).removeprefix("torch."), **case,
                          "device": o.device, "threads": o.threads})
    report(torch, o, case, rows)
    clock.report()
    peer.save(o.json, rows)


if __name__ == "__main__":
    main()
