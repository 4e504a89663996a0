"""IceCube's attention layer and training step: this project's and PyTorch's, in turns in one run.

    make bench-peer PYTHON=VENV/bin/python
    python dev/bench/peer_icecube.py [--device cuda] [--part layer|train|both] [--events 64]
                                     [--threads 2] [--rounds 3] [--repeats 7]
                                     [--attn sdpa,flex,padded] [--only TEXT] [--seconds N]
                                     [--json FILE]

layer: one layer, one head of 128, projections and the mean over each DOM, forward, on batches of 4,
8 and 16 events with the counts of three real ones (./bench_attention --case icecube). train: the
hierarchical model, T1 and T2, at batch 64 (cuda: 128): forward, backward and AdamW, and inference,
both on the very counts of ./bench_icecube (--counts), also with --no-ours. A round runs ours, then
each of PyTorch's ways; the figures are medians over rounds of medians over repeats. Float32 (cuda:
bf16, PyTorch's by autocast), no dropout. What depends on a batch's documents alone (the places of
padded rows, the block mask) is made before the time counts, as our masks are. On a GPU PyTorch's
models are compiled as well, for the one batch that is measured, which helps them.
"""
import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import peer

# events, pulses, DOMs, most pulses of a DOM
BATCHES = ((4, 290, 227, 6), (8, 763, 502, 27), (16, 1305, 895, 27))


def layer_counts(torch, events, pulses, doms, most):
    """Pulses of each DOM: one has the most, the next quarter shares what ones leave; shuffled."""
    with torch.device("cpu"):
        random = torch.Generator().manual_seed(events)
        count = torch.ones(doms, dtype=torch.long)
        count[0] = most
        while count.sum() < pulses:
            i = int(torch.randint(doms // 4, (1,), generator=random))
            count[i] += int(count[i] < most - 1)
        count = count[torch.randperm(doms, generator=random)]
    return count.to(torch.get_default_device())


def train_counts(torch, events):
    """DOMs of each event and pulses of each DOM: those of the batch that our program measures."""
    count = ours("./bench_icecube", "--counts", "--batch", str(events))
    return torch.tensor(count["doms"]), torch.tensor(count["pulses"])


def attention_ways(torch, count):
    """q, k, v (N, C) and H -> (N, C), each DOM by itself, in PyTorch's ways."""
    import torch.nn.functional as F
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows, doms, longest = int(count.sum()), len(count), int(count.max())
    dom = torch.arange(doms).repeat_interleave(count)
    valid = torch.arange(longest) < count[:, None]  # (doms, longest)
    place = valid.flatten().nonzero().squeeze(1)    # of each pulse among the padded rows
    sees = valid[:, None, None]
    ends = count.cumsum(0).tolist()

    def loop(q, k, v, heads):
        out, begin = torch.empty_like(v), 0
        for end in ends:
            a, b, c = (t[begin:end].unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k, v))
            out[begin:end] = F.scaled_dot_product_attention(a, b, c).transpose(0, 1).flatten(1)
            begin = end
        return out

    def pad(t, heads):  # a copy to places: its backward is a gather, and fast
        wide = t.new_zeros(doms * longest, t.shape[1]).index_copy(0, place, t)
        return wide.view(doms, longest, heads, -1).transpose(1, 2)

    def unpad(t):
        return t.transpose(1, 2).reshape(doms * longest, -1).index_select(0, place)

    def padded(q, k, v, heads):
        q, k, v = (pad(t, heads) for t in (q, k, v))
        return unpad(F.scaled_dot_product_attention(q, k, v, attn_mask=sees))

    def padded_bmm(q, k, v, heads):
        q, k, v = (pad(t, heads) for t in (q, k, v))
        score = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        return unpad(score.masked_fill(~sees, float("-inf")).softmax(-1) @ v)

    def same_dom(b, h, i, j):
        return dom[i] == dom[j]

    def own_score(score, b, h, i, j):
        return torch.where(dom[i] == dom[j], score, -float("inf"))

    flex = torch.compile(flex_attention, dynamic=False)  # dynamic shapes do not compile here
    blocks = create_block_mask(same_dom, None, None, rows, rows,
                               device=torch.get_default_device().type)

    def with_flex(q, k, v, heads, **how):
        q, k, v = (t.view(1, rows, heads, -1).transpose(1, 2) for t in (q, k, v))
        return flex(q, k, v, **how).transpose(1, 2).reshape(rows, -1)

    return {"loop": loop, "padded": padded, "padded-bmm": padded_bmm,
            "padded-bmm, compiled": torch.compile(padded_bmm, dynamic=False),
            "flex, dense": lambda *a: with_flex(*a, score_mod=own_score),
            "flex, block mask": lambda *a: with_flex(*a, block_mask=blocks)}


def torch_layers(torch, sizes, dtype):
    """name -> a function that computes the layer once."""
    from torch import nn
    torch.manual_seed(0)
    linear, qkv, out = (nn.Linear(*s).to(dtype) for s in ((4, 128), (128, 384), (128, 128)))
    count = layer_counts(torch, *sizes)
    dom = torch.arange(len(count)).repeat_interleave(count)
    pulses, share = torch.randn(len(dom), 4).to(dtype), (1 / count[:, None]).to(dtype)

    def layer(way):
        with torch.inference_mode():
            q, k, v = qkv(linear(pulses)).chunk(3, -1)
            x = out(way(q, k, v, 1))
            return x.new_zeros(len(count), 128).index_add(0, dom, x) * share

    return {name: lambda way=way: layer(way) for name, way in attention_ways(torch, count).items()}


def padding(torch, segment, events):
    """The reference's padded() with what depends on the events alone made before."""
    count = torch.bincount(segment, minlength=events)
    longest = int(count.max())
    valid = torch.arange(longest) < count[:, None]
    place = valid.flatten().nonzero().squeeze(1)

    def padded(x, _, n):
        return x.new_zeros(n * longest, x.shape[1]).index_copy(0, place, x).unflatten(
            0, (n, longest)), valid

    return padded


def torch_training(torch, o):
    """name -> functions of a training step and of inference, at o.events events."""
    import torch.nn.functional as F
    from torch import nn
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ref"))
    import icecube_model as ref

    doms, count = train_counts(torch, o.events)
    dom = torch.arange(len(count)).repeat_interleave(count)
    batch = ref.Batch(events=o.events, dom=dom, count=count, sensor=None, vector=None,
                      event=torch.arange(o.events).repeat_interleave(doms),
                      pulse=torch.randn(len(dom), 4), xyz=torch.randn(len(count), 3) / 2)
    true = F.normalize(torch.randn(o.events, 3), dim=1)
    ref.padded = padding(torch, batch.event, o.events)
    cuda = o.device == "cuda"

    class Layer(ref.PulseLayer):
        def __init__(self, way):
            super().__init__(ref.HIERARCHICAL)
            self.way = way

        def forward(self, x, _):
            x = self.norm1(x + self.out_proj(self.way(*self.qkv_proj(x).chunk(3, -1), self.heads)))
            return self.norm2(x + self.ff(x))

    def ways_of(way, compiled=False):
        torch.manual_seed(0)
        model = ref.Hierarchical(ref.HIERARCHICAL)
        model.t1.layers = nn.ModuleList(Layer(way) for _ in model.t1.layers)
        adamw = torch.optim.AdamW(model.parameters(), 3e-4, weight_decay=1e-5, fused=True)
        run = torch.compile(model, dynamic=False) if compiled else model

        def forward():
            with torch.autocast(o.device, torch.bfloat16, enabled=cuda):
                return run(batch)[0]

        def step():
            model.train()
            adamw.zero_grad()
            ref.angle_loss(forward().float(), true).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()

        def infer():
            model.eval()
            with torch.inference_mode():
                forward()

        return step, infer

    ways = attention_ways(torch, count)
    if cuda:
        return {"padded, compiled model": ways_of(ways["padded"], True),
                "flex, block mask, compiled model": ways_of(ways["flex, block mask"], True),
                "padded": ways_of(ways["padded"])}
    return {name: ways_of(ways[name]) for name in ("padded", "padded-bmm", "padded-bmm, compiled")}


def tried(f, repeats, row, key):
    """The median of f's times in row[key], or why there is none: that is a result too."""
    try:
        row[key] = peer.median(peer.times_ms(f, repeats))
    except Exception as e:
        row[key], row[f"no_{key}"] = None, peer.reason(e)


def ours(program, file_option, *options):
    """What our program writes into a JSON file."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bench.json")
        peer.child([program, file_option, path, *options])
        with open(path) as f:
            return json.load(f)


def ours_measured(program, o, *options):
    return ours(program, "--json", "--threads", str(o.threads), "--repeats", str(o.repeats),
                "--device", o.device, *options)


def layer_round(o, layers, clock):
    rows = []
    if o.ours and clock.allows("layer, ours"):
        rows += [{k: r[k] for k in ("backend", "batch", "pulses", "doms", "forward_ms")}
                 for r in ours_measured("./bench_attention", o, "--case", "icecube")]
    for sizes, ways in layers.items():
        for name, f in ways.items():
            if not clock.allows(f"layer, {name}"):
                continue
            row = dict(zip(("batch", "pulses", "doms"), sizes), backend=f"torch {name}")
            tried(f, o.repeats, row, "forward_ms")
            rows.append(row)
    return rows


def train_round(o, ways, clock):
    rows = []
    whole = ("--max-pulses", "0") if o.device == "cuda" else ()  # in one part, as PyTorch
    for name in filter(None, o.attn.split(",") if o.ours else ()):
        if not clock.allows(f"training, {name}"):
            continue
        r = ours_measured("./bench_icecube", o, "--batch", str(o.events), "--attn", name,
                          "--dropout", "0", *whole)[0]
        rows.append({"backend": name, "batch": o.events,
                     **{f"{k}_ms": 1e3 * o.events / r[f"{k}_events_per_s"]
                        for k in ("train", "inference")}})
    for name, (step, infer) in ways.items():
        if not clock.allows(f"training, torch {name}"):
            continue
        row = {"backend": f"torch {name}", "batch": o.events}
        tried(step, o.repeats, row, "train_ms")
        tried(infer, o.repeats, row, "inference_ms")
        rows.append(row)
    return rows


def medians(rounds, keys):
    """One row a backend and batch, its times the medians over rounds."""
    merged = {}
    for row in (row for rows in rounds for row in rows):
        merged.setdefault((row["batch"], row["backend"]), []).append(row)
    for rows in merged.values():
        for key in keys:
            rows[0][key] = peer.median([r[key] for r in rows if r[key] is not None])
    return [rows[0] for rows in merged.values()]


def best(rows, key):
    return min((r[key] for r in rows if r["backend"].startswith("torch ") and r[key]),
               default=None)


def report_layer(rows, _):
    found = {(r["batch"], r["backend"]): r for r in rows}
    names = list(dict.fromkeys(r["backend"] for r in rows))
    fastest = {b[0]: best([r for r in rows if r["batch"] == b[0]], "forward_ms") for b in BATCHES}
    for r in rows:
        if r["forward_ms"] and fastest[r["batch"]]:
            r["times_faster"] = fastest[r["batch"]] / r["forward_ms"]
    head = ["one layer, forward, ms"]
    for events, pulses, doms, _ in BATCHES:
        head += [f"{events} events ({pulses} on {doms})", "times torch's best"]
    peer.table(head, [[name] + [found.get((b[0], name), {}).get(key) for b in BATCHES
                                for key in ("forward_ms", "times_faster")] for name in names])


def report_train(rows, events):
    table = []
    for r in rows:
        line = [r["backend"]]
        for key in ("train", "inference"):
            ms, fastest = r[f"{key}_ms"], best(rows, f"{key}_ms")
            r[f"{key}_events_per_s"] = 1e3 * events / ms if ms else None
            if ms and fastest:
                r[f"{key}_times_faster"] = fastest / ms
            line += [ms, r[f"{key}_events_per_s"], r.get(f"{key}_times_faster")]
        table.append(line)
    peer.table([f"T1 + T2, {events} events", "step ms", "events/s", "times torch's best",
                "inference ms", "events/s", "times torch's best"], table)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--part", default="both", choices=("layer", "train", "both"))
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--repeats", type=int, default=7)
    p.add_argument("--events", type=int, help="of the training step: 64; cuda: 128")
    p.add_argument("--attn", default="sdpa,flex,padded", help="ours, in training")
    p.add_argument("--only", default="", help="PyTorch's ways that contain this text")
    p.add_argument("--no-ours", dest="ours", action="store_false", help="PyTorch alone")
    peer.add_device(p)
    p.add_argument("--json")
    o = p.parse_args()
    peer.keep_freed_memory()
    cuda = o.device == "cuda"
    o.events = o.events or (128 if cuda else 64)
    torch, clock = peer.need_torch(o.device), peer.Clock(o.seconds)
    dtype = peer.dtype_of(torch, o.device)
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    layers, training = {}, {}
    if o.part != "train":
        layers = {sizes: torch_layers(torch, sizes, dtype) for sizes in BATCHES}
    if o.part != "layer":
        training = torch_training(torch, o)
    layers = {s: {n: f for n, f in ways.items() if o.only in n} for s, ways in layers.items()}
    training = {n: f for n, f in training.items() if o.only in n}
    layer_rounds, train_rounds = [], []
    for i in range(o.rounds):
        print(f"round {i + 1} of {o.rounds}", file=sys.stderr)
        if o.part != "train":
            layer_rounds.append(layer_round(o, layers, clock))
        if o.part != "layer":
            train_rounds.append(train_round(o, training, clock))
    dtype_name = str(dtype).removeprefix("torch.")
    print(f"PyTorch {torch.__version__}, {o.device}, {dtype_name}, {o.threads} threads; medians of "
          f"{o.rounds} rounds in turns")
    rows = []
    for part, rounds, report, keys in (
            ("layer", layer_rounds, report_layer, ("forward_ms",)),
            ("train", train_rounds, report_train, ("train_ms", "inference_ms"))):
        if rounds:
            some = medians(rounds, keys)
            report(some, o.events)
            rows += [{"part": part, "device": o.device, "dtype": dtype_name, "threads": o.threads,
                      **r} for r in some]
    for row in rows:
        for key in (k for k in row if k.startswith("no_")):
            print(f"{row['backend']}, batch {row['batch']}: {key.replace('_', ' ')}: {row[key]}")
    clock.report()
    peer.save(o.json, rows)


if __name__ == "__main__":
    main()
