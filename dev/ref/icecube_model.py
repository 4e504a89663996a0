"""The IceCube DOM transformers in PyTorch: what the C models are checked against.

Written to be read next to models/icecube.c and models/icecube_flat.c: the same parts in the same
order, and the parameters under the originals' names (state_dict). Attention is the plain formula
over all rows of a batch, those of other documents hidden; T2 is PyTorch's own encoder over padded
events, as the original has it.

Letters: B events, M DOMs, N pulses, K pulses kept a DOM, C d_model, H heads, D = C / H.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

HIERARCHICAL = dict(model="hierarchical", d_model=128, n_heads=8, t1_layers=4, t2_layers=4,
                    d_ff=512, pooling="mean", dropout=0.0, time_scale=3e4, max_doms=2048)
FLAT = dict(model="flat", d_model=128, num_heads=8, num_layers=4, hidden_dim=256,
            head_hidden_dim=128, max_pulses_per_dom=16, input_mode="linear", dropout=0.0,
            time_scale=3e4, max_doms=128)


def complete(cfg):
    """The config with defaults; the originals' n_layers stands for both layer counts."""
    if cfg["model"] == "flat":
        return {**FLAT, **cfg}
    both = {k: cfg["n_layers"] for k in ("t1_layers", "t2_layers") if "n_layers" in cfg}
    return {**HIERARCHICAL, **both, **cfg}


# ---- batches ----


@dataclass
class Batch:
    events: int
    dom: torch.Tensor      # (N,) of each pulse
    event: torch.Tensor    # (M,) of each DOM
    sensor: torch.Tensor   # (M,)
    count: torch.Tensor    # (M,) pulses
    pulse: torch.Tensor    # (N, 4); the hierarchical model's
    vector: torch.Tensor   # (M, 4 + 3K); the flat model's
    xyz: torch.Tensor      # (M, 3), in 500 m


def collate(held, cfg, dtype):
    """Groups a fixture's in.* by (event, sensor), in recorded order inside a DOM."""
    event, sensor = held["in.event"].tolist(), held["in.sensor_id"].tolist()
    time, charge = held["in.time"].to(dtype), held["in.charge"].to(dtype)
    aux = held["in.auxiliary"].to(dtype)
    events = len(held["in.direction"])
    groups = [{} for _ in range(events)]
    for i, (e, s) in enumerate(zip(event, sensor)):
        groups[e].setdefault(s, []).append(i)
    rows = []  # (event, sensor, its pulses)
    for e, doms in enumerate(groups):
        earliest = sorted(doms, key=lambda s: (time[doms[s][0]].item(), s))[:cfg["max_doms"]]
        rows += [(e, s, doms[s]) for s in sorted(earliest)]

    count = torch.tensor([len(r[2]) for r in rows])
    order = torch.tensor([i for r in rows for i in r[2]])
    ids = torch.tensor([r[1] for r in rows])
    dom = torch.arange(len(rows)).repeat_interleave(count)
    when = (time - 1e4) / cfg["time_scale"]
    pulse = torch.stack([when, torch.log10(charge + 1e-8) / 3,
                         held["in.sensor_id"].to(dtype) / 5160, aux], -1)[order]
    xyz = held["in.sensor_geometry"].to(dtype)[ids] / 500

    kept = cfg.get("max_pulses_per_dom", 0)
    each = torch.stack([when, torch.log10(charge.clamp(min=1e-6)) / 3, aux - 0.5], -1)
    first = torch.zeros(len(rows), kept, 3, dtype=dtype)
    for m, row in enumerate(rows):
        some = row[2][:kept]
        first[m, :len(some)] = each[some]
    number = torch.log1p(count.to(dtype)) / 3 - 1
    return Batch(events=events, dom=dom, event=torch.tensor([r[0] for r in rows]), sensor=ids,
                 count=count, pulse=pulse, xyz=xyz,
                 vector=torch.cat([xyz, number[:, None], first.flatten(1)], -1))


def padded(x, segment, n):
    """Rows (M, C) of `n` segments -> (n, longest, C), and where there is a row (n, longest)."""
    count = torch.bincount(segment, minlength=n)
    place = torch.arange(len(segment)) - (count.cumsum(0) - count)[segment]
    out = x.new_zeros(n, int(count.max()), x.shape[1])
    valid = torch.zeros(out.shape[:2], dtype=torch.bool)
    out[segment, place], valid[segment, place] = x, True
    return out, valid


def attend(q, k, v, document):
    """q, k, v (H, N, D); a row sees the rows of its own document."""
    sees = document[:, None] == document[None]
    score = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.where(sees, score, float("-inf")).softmax(-1) @ v


def heads(x, n):
    return x.unflatten(-1, (n, -1)).transpose(0, 1)  # (N, C) -> (H, N, D)


def unit(x):
    return x / (x.norm(dim=-1, keepdim=True) + 1e-8)


# ---- hierarchical ----


class PulseLayer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        c, self.heads = cfg["d_model"], cfg["n_heads"]
        self.qkv_proj, self.out_proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.ff = nn.Sequential(nn.Linear(c, cfg["d_ff"]), nn.GELU(), nn.Identity(),
                                nn.Linear(cfg["d_ff"], c))
        self.norm1, self.norm2 = nn.LayerNorm(c), nn.LayerNorm(c)

    def forward(self, x, dom):
        q, k, v = (heads(t, self.heads) for t in self.qkv_proj(x).chunk(3, -1))
        x = self.norm1(x + self.out_proj(attend(q, k, v, dom).transpose(0, 1).flatten(1)))
        return self.norm2(x + self.ff(x))


class T1(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        c, self.pooling = cfg["d_model"], cfg["pooling"]
        self.input_projection = nn.Linear(4, c)
        if self.pooling == "class":
            self.class_token = nn.Parameter(torch.randn(c))
        if self.pooling != "embedding":
            self.layers = nn.ModuleList(PulseLayer(cfg) for _ in range(cfg["t1_layers"]))
            self.norm = nn.LayerNorm(c)
        if self.pooling == "mean+max":
            self.projection = nn.Linear(2 * c, c)

    def forward(self, batch):
        """-> (M, C), one row a DOM"""
        x, dom, doms = self.input_projection(batch.pulse), batch.dom, len(batch.count)
        if self.pooling == "class":  # behind the pulses: the order within a DOM does not matter
            x = torch.cat([x, self.class_token.expand(doms, -1)])
            dom = torch.cat([dom, torch.arange(doms)])
        if self.pooling != "embedding":
            for layer in self.layers:
                x = layer(x, dom)
            x = self.norm(x)
        if self.pooling == "class":
            return x[-doms:]
        mean = x.new_zeros(doms, x.shape[1]).index_add(0, dom, x) / batch.count[:, None]
        if self.pooling in ("mean", "embedding"):
            return mean
        rows, valid = padded(x, dom, doms)
        largest = rows.masked_fill(~valid[..., None], float("-inf")).amax(1)
        return largest if self.pooling == "max" else self.projection(torch.cat([mean, largest], -1))


class T2(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        c = cfg["d_model"]
        self.geometry_encoder = nn.Sequential(nn.Linear(3, c // 2), nn.GELU(),
                                              nn.Linear(c // 2, c))
        layer = nn.TransformerEncoderLayer(c, cfg["n_heads"], cfg["d_ff"], dropout=0.0,
                                           batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, cfg["t2_layers"],
                                                 enable_nested_tensor=False)
        self.prediction_head = nn.Sequential(nn.Linear(c, c), nn.ReLU(), nn.Identity(),
                                             nn.Linear(c, 3))

    def forward(self, x, batch):
        x, valid = padded(x + self.geometry_encoder(batch.xyz), batch.event, batch.events)
        x = self.transformer(x, src_key_padding_mask=~valid) * valid[..., None]
        return unit(self.prediction_head(x.sum(1) / valid.sum(1, keepdim=True)))


class Hierarchical(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.t1, self.t2 = T1(cfg), T2(cfg)

    def forward(self, batch):
        """-> directions (B, 3), and T1's output (M, C)"""
        dom = self.t1(batch)
        return self.t2(dom, batch), dom


# ---- flat ----


def norm(x):
    """F.rms_norm as float32 has it: its eps goes by the type and would be another in float64."""
    return F.rms_norm(x, x.shape[-1:], eps=torch.finfo(torch.float32).eps)


class FlatAttention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        c, self.heads = cfg["d_model"], cfg["num_heads"]
        self.c_q, self.c_k, self.c_v, self.c_proj = (nn.Linear(c, c, bias=False) for _ in range(4))

    def forward(self, x, event):
        q, k, v = (heads(w(x), self.heads) for w in (self.c_q, self.c_k, self.c_v))
        return self.c_proj(attend(norm(q), norm(k), v, event).transpose(0, 1).flatten(1))


class FlatFFN(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        c, hidden = cfg["d_model"], cfg["hidden_dim"]
        self.c_fc, self.c_proj = nn.Linear(c, hidden, False), nn.Linear(hidden, c, False)

    def forward(self, x):
        return self.c_proj(F.relu(self.c_fc(x)).square())


class FlatBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.attn, self.ffn = FlatAttention(cfg), FlatFFN(cfg)

    def forward(self, x, event):
        x = x + self.attn(norm(x), event)
        return x + self.ffn(norm(x))


class DirectionHead(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.fc1 = nn.Linear(cfg["d_model"], cfg["head_hidden_dim"])
        self.fc2 = nn.Linear(cfg["head_hidden_dim"], 3)

    def forward(self, x):
        return unit(self.fc2(F.gelu(self.fc1(x))))


class Flat(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        c, features, layers = cfg["d_model"], 4 + 3 * cfg["max_pulses_per_dom"], cfg["num_layers"]
        self.width = c
        if cfg["input_mode"] == "linear":
            self.input_proj = nn.Linear(features, c)
        elif cfg["input_mode"] == "mlp":
            self.input_proj = nn.Sequential(nn.Linear(features, c), nn.GELU(), nn.Linear(c, c))
        else:
            self.input_proj = lambda x: F.pad(x, (0, c - features))
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, c))
        self.resid_lambdas = nn.Parameter(torch.ones(layers))
        self.x0_lambdas = nn.Parameter(torch.full((layers,), 0.1))
        self.blocks = nn.ModuleList(FlatBlock(cfg) for _ in range(layers))
        self.direction_head = DirectionHead(cfg)

    def forward(self, batch):
        """-> directions (B, 3), None"""
        x = norm(self.input_proj(batch.vector))
        x0 = x = torch.cat([x, self.cls_token[0].expand(batch.events, -1)])
        event = torch.cat([batch.event, torch.arange(batch.events)])
        for i, block in enumerate(self.blocks):
            x = block(self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0, event)
        return self.direction_head(norm(x)[-batch.events:]), None


def make_model(cfg):
    return Flat(cfg) if cfg["model"] == "flat" else Hierarchical(cfg)


def angle_loss(predicted, true):
    """The mean angle in radians."""
    dot = (predicted * true).sum(1)
    return torch.arccos(dot.clamp(-1 + 1e-4, 1 - 1e-4)).mean()
