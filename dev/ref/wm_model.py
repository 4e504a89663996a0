"""The toy video world model in PyTorch: what the C model is checked against and timed beside.

Written to be read next to models/wm.c: the same parts in the same order, and the parameters under
the originals' names (state_dict). `attn` chooses how attention is computed: vanilla, sdpa or flex.

Letters: B batch, F frames, S tokens a frame, T = F S tokens, C d_model, H heads, D = C / H.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

DEFAULTS = dict(d_model=384, n_heads=6, n_blocks=8, n_window=30, height=24, width=24, patch_size=3,
                rope="rope", rope_base=5000, expansion=4, n_registers=1, n_actions=4,
                timesteps=1000)


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.w = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w


def angles(positions, dim, base):
    """(len(positions), dim): position * base^(-2i/dim), each angle for two neighbouring columns."""
    theta = torch.exp(-math.log(base) * torch.arange(0, dim, 2) / dim).repeat_interleave(2)
    return positions[:, None] * theta[None]


def rope_angles(cfg):
    """(T, D) angles of the variants `rope` and `learn` (flat positions) and `vid` (x, y, t)."""
    rows, columns = cfg["height"] // cfg["patch_size"], cfg["width"] // cfg["patch_size"]
    patches = rows * columns
    tokens = patches + cfg["n_registers"]
    dim = cfg["d_model"] // cfg["n_heads"]
    flat = torch.arange(cfg["n_window"] * tokens)
    if cfg["rope"] != "vid":
        return angles(flat, dim, cfg["rope_base"])
    token = flat % tokens
    x = torch.where(token < patches, token % columns, torch.tensor(columns))
    y = torch.where(token < patches, token // columns, torch.tensor(rows))
    third, base = dim // 3 // 2 * 2, cfg["rope_base"] // 3
    parts = [angles(p, third, base) for p in (x, y, flat // tokens)]
    return torch.cat(parts + [torch.zeros(len(flat), dim - 3 * third)], -1)


class Rope(nn.Module):
    """Rotates the pairs (2i, 2i+1) by tables that are parameters in the variant `learn`."""

    def __init__(self, cfg):
        super().__init__()
        a = rope_angles(cfg)[None, :, None]
        for name, table in (("sins", a.sin()), ("coss", a.cos())):
            if cfg["rope"] == "learn":
                self.register_parameter(name, nn.Parameter(table))
            else:
                self.register_buffer(name, table, persistent=False)

    def forward(self, x, first=0):
        """x (B, H, n, D), its tokens at positions first, first + 1, ..."""
        turned = torch.empty_like(x)
        turned[..., 0::2], turned[..., 1::2] = -x[..., 1::2], x[..., 0::2]
        sin, cos = (t[:, first:first + x.shape[2]].transpose(1, 2) for t in (self.sins, self.coss))
        return cos * x + sin * turned


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        c, self.heads = cfg["d_model"], cfg["n_heads"]
        self.QKV, self.O = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.lnq, self.lnk = RMSNorm(c // self.heads), RMSNorm(c // self.heads)

    def forward(self, x, rope, attend, window=None):
        """window: a dict whose `kv` holds the raw keys and values before x; gets x's added."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for t in self.QKV(x).chunk(3, -1))  # (B, H, T, D)
        first = 0
        if window is not None:
            if "kv" in window:
                first = window["kv"][0].shape[2]
                k, v = (torch.cat([old, new], 2) for old, new in zip(window["kv"], (k, v)))
            window["next"] = k, v
        q, k = rope(self.lnq(q), first), rope(self.lnk(k))
        y = attend(q, k, v, first)
        return self.O(y.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        c, m = cfg["d_model"], cfg["d_model"] * cfg["expansion"]
        self.up_proj, self.up_gate, self.down = nn.Linear(c, m), nn.Linear(c, m), nn.Linear(m, c)
        for layer in (self.up_proj, self.up_gate, self.down):
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.down(self.up_proj(x) * F.silu(self.up_gate(x)))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        c = cfg["d_model"]
        self.norm1, self.selfattn = RMSNorm(c), Attention(cfg)
        self.norm2, self.geglu = RMSNorm(c), GatedMLP(cfg)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(c, 6 * c))

    def forward(self, x, cond, tokens, rope, attend, window):
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            t.repeat_interleave(tokens, 1) for t in self.modulation(cond).chunk(6, -1))
        y = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.selfattn(y, rope, attend, window)
        return x + gate2 * self.geglu(self.norm2(x) * (1 + scale2) + shift2)


class Patch(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        c, self.side = cfg["d_model"], cfg["patch_size"]
        half = c // 2
        norm = (lambda: [nn.GroupNorm(32, half)]) if c % 32 == 0 and c > 32 else (lambda: [])
        self.init_conv_seq = nn.Sequential(
            nn.Conv2d(3, half, 5, padding=2), nn.SiLU(), *norm(),
            nn.Conv2d(half, half, 5, padding=2), nn.SiLU(), *norm())
        self.x_embedder = nn.Linear(self.side**2 * half, c)

    def forward(self, x):
        y = F.unfold(self.init_conv_seq(x.flatten(0, 1)), self.side, stride=self.side)
        return self.x_embedder(y.transpose(1, 2)).unflatten(0, x.shape[:2])


class UnPatch(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.side, self.size = cfg["patch_size"], (cfg["height"], cfg["width"])
        self.unpatch = nn.Linear(cfg["d_model"], 3 * self.side**2)

    def forward(self, x):
        p, (h, w) = self.side, self.size
        y = self.unpatch(x).reshape(*x.shape[:2], h // p, w // p, p, p, 3)
        return y.permute(0, 1, 6, 2, 4, 3, 5).reshape(*x.shape[:2], 3, h, w)


class WorldModel(nn.Module):
    def __init__(self, cfg=None, attn="sdpa"):
        super().__init__()
        self.cfg = cfg = {**DEFAULTS, **(cfg or {})}
        c, p = cfg["d_model"], cfg["patch_size"]
        self.attn = attn
        self.tokens = (cfg["height"] // p) * (cfg["width"] // p) + cfg["n_registers"]
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg["n_blocks"]))
        self.patch, self.norm, self.unpatch = Patch(cfg), RMSNorm(c), UnPatch(cfg)
        self.action_emb = nn.Embedding(cfg["n_actions"], c)
        self.registers = nn.Parameter(torch.randn(cfg["n_registers"], c) / c**0.5)
        self.time_emb_mixer = nn.Linear(c, c)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(c, 2 * c))
        self.rope_seq = Rope(cfg)
        frame = torch.arange(cfg["n_window"] * self.tokens) // self.tokens
        self.register_buffer("sees", frame[:, None] >= frame[None], persistent=False)
        level = torch.arange(cfg["timesteps"])[:, None]
        a = level * torch.exp(-math.log(1e4) * torch.arange(0, c, 2) / c)[None]
        self.register_buffer("time_table", torch.stack([a.sin(), a.cos()], -1).flatten(1),
                             persistent=False)
        if attn == "flex":
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention
            n, total = self.tokens, len(frame)
            self.flex = flex_attention
            self.block_mask = create_block_mask(
                lambda b, h, q, k: (q >= k) | (q // n == k // n), None, None, total, total, "cpu")

    def attend(self, q, k, v, first):
        """q (B, H, n, D), its first token at position `first` of the keys'; scale 1."""
        sees = self.sees[first:first + q.shape[2], :k.shape[2]]
        if self.attn == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=1.0)
        if self.attn == "flex":
            return self.flex(q, k, v, block_mask=self.block_mask, scale=1.0)
        return torch.where(sees, q @ k.transpose(-1, -2), float("-inf")).softmax(-1) @ v

    def forward(self, x_t, actions, ts, windows=None):
        """x_t (B, F, 3, h, w), actions (B, F), ts (B, F) -> the velocity (B, F, 3, h, w).

        windows: one dict a block (see Attention); the frames then come behind the cached ones.
        """
        row = (ts.float() * (self.cfg["timesteps"] - 1)).long()
        cond = self.time_emb_mixer(self.time_table[row].to(x_t.dtype)) + self.action_emb(actions)
        x = self.patch(x_t)
        batch, frames = x.shape[:2]
        x = torch.cat([x, self.registers.expand(batch, frames, -1, -1)], 2).flatten(1, 2)
        for i, block in enumerate(self.blocks):
            window = windows[i] if windows is not None else None
            x = block(x, cond, self.tokens, self.rope_seq, self.attend, window)
        shift, scale = (t.repeat_interleave(self.tokens, 1)
                        for t in self.modulation(cond).chunk(2, -1))
        x = (self.norm(x) * (1 + scale) + shift).unflatten(1, (frames, self.tokens))
        return self.unpatch(x[:, :, :self.tokens - self.cfg["n_registers"]])


def flow_loss(model, frames, noise, ts, actions):
    """Mean squared error of the velocity; each frame has its own noise level."""
    velocity = frames - noise
    x_t = frames - ts[:, :, None, None, None] * velocity
    predicted = model(x_t, actions, ts)
    return F.mse_loss(predicted.double(), velocity.double()), predicted
