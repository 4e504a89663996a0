"""Fixtures of the world model: small models run by PyTorch, for test_wm to reproduce.

    python dev/ref/wm_ref.py make [FOLDER]        writes the fixtures (default test/fixtures)
    python dev/ref/wm_ref.py verify FILE...       runs this reference on files of the same form

`make` computes in float64 and stores float32, so that a fixture carries no rounding of its own.
Needs: python3 -m venv VENV && VENV/bin/pip install torch numpy safetensors

A fixture is a safetensors file with the config as JSON in its metadata and
  param.NAME    the parameters (bfloat16 here: the values are exact and the file is half as large)
  in.*          frames, noise (B, F, 3, h, w); ts, actions (B, F); sample.noise, sample.actions
  out.velocity, out.loss, out.losses3 and out.losses10 (steps on one batch),
  out.sample.cfg1, out.sample.cfg1.5
  grad.NAME, step1.NAME    gradients, and the parameters after one step of the optimiser
Every out.*, grad.* and step1.* may be left out.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from wm_model import DEFAULTS, WorldModel, flow_loss

OPTIMISER = dict(lr_muon=0.02, lr_adam=3e-4, beta1=0.9, beta2=0.95, weight_decay=1e-5,
                 grad_clip=10.0)


def newton_schulz(n):
    """The nearest orthogonal matrix, roughly: five steps of Jordan's quintic."""
    wide = n.T if n.shape[0] > n.shape[1] else n
    x = wide / (n.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if n.shape[0] > n.shape[1] else x


class Optimiser:
    """Muon for the matrices of the blocks, Adam for the rest, the gradient's norm clipped."""

    def __init__(self, model, cfg):
        self.named, self.cfg, self.t = dict(model.named_parameters()), cfg, 0
        self.m = {k: torch.zeros_like(p) for k, p in self.named.items()}
        self.v = {k: torch.zeros_like(p) for k, p in self.named.items()}

    @torch.no_grad()
    def step(self):
        cfg, b1, b2 = self.cfg, self.cfg["beta1"], self.cfg["beta2"]
        self.t += 1
        torch.nn.utils.clip_grad_norm_(self.named.values(), cfg["grad_clip"])
        for key, p in self.named.items():
            m, v, g = self.m[key], self.v[key], p.grad
            if key.startswith("blocks.") and p.ndim == 2:
                m.mul_(0.95).add_(0.05 * g)
                u = newton_schulz(0.05 * g + 0.95 * m) * max(1, p.shape[0] / p.shape[1])**0.5
                lr = cfg["lr_muon"]
            else:
                m.mul_(b1).add_((1 - b1) * g)
                v.mul_(b2).add_((1 - b2) * g * g)
                u = (m / (1 - b1**self.t)) / ((v / (1 - b2**self.t)).sqrt() + 1e-10)
                lr = cfg["lr_adam"]
            p.sub_(lr * cfg["weight_decay"] * p).sub_(lr * u)


@torch.no_grad()
def sample(model, noise, actions, steps, guidance):
    """Frame by frame with a rolling window; the window takes the last step's keys and values.

    With guidance other than 1, a second branch without actions runs beside, in the batch.
    """
    branches = 1 if guidance == 1 else 2
    windows = [{} for _ in model.blocks]
    keep = (model.cfg["n_window"] - 1) * model.tokens
    level = 1 - torch.arange(steps + 1) / steps
    level = 3 * level / (2 * level + 1)
    out = []
    for i in range(noise.shape[1]):
        z = noise[:, i:i + 1]
        action = actions[:, i:i + 1]
        if branches == 2:
            action = torch.cat([action, torch.zeros_like(action)])
        for now, then in zip(level, level[1:]):
            t = now.expand(branches, 1)
            v = model(z.expand(branches, *z.shape[1:]), action, t, windows)
            if branches == 2:
                v = v[1:] + guidance * (v[:1] - v[1:])
            z = z + (now - then).to(z.dtype) * v
        for w in windows:
            w["kv"] = tuple(t[:, :, max(0, t.shape[2] - keep):] for t in w.pop("next"))
        out.append(z)
    return torch.cat(out, 1)


def results(model, cfg, inputs):
    """All that a fixture holds besides inputs and parameters. Changes the model (ten steps)."""
    batch = [inputs[k] for k in ("in.frames", "in.noise", "in.ts", "in.actions")]
    out = {}
    if "in.sample.noise" in inputs:
        for name, guidance in (("cfg1", 1), ("cfg1.5", 1.5)):
            out[f"out.sample.{name}"] = sample(model, inputs["in.sample.noise"],
                                               inputs["in.sample.actions"], cfg["sample_steps"],
                                               guidance)
    optimiser = Optimiser(model, cfg)
    losses = []
    for step in range(10):
        model.zero_grad()
        loss, velocity = flow_loss(model, *batch)
        losses.append(loss.detach())
        loss.backward()
        if step == 0:
            out["out.velocity"] = velocity.detach()
            out["out.loss"] = loss.detach().reshape(1)
            out |= {f"grad.{k}": p.grad.clone() for k, p in model.named_parameters()}
        optimiser.step()
        if step == 0:
            out |= {f"step1.{k}": p.detach().clone() for k, p in model.named_parameters()}
    out["out.losses3"], out["out.losses10"] = torch.stack(losses[:3]), torch.stack(losses)
    return out


# Odd on purpose: pictures that are not square, frames of no round size, two registers, heads of
# 10 and 12, a batch of 2. `keep` says which results are stored, to keep the files small.
CASES = dict(
    wm_rope=dict(d_model=32, n_heads=2, n_blocks=1, n_window=2, height=12, width=12,
                 expansion=2, batch=2, samples=4),
    wm_learn=dict(d_model=20, n_heads=2, n_blocks=2, n_window=3, height=9, width=12, rope="learn",
                  n_registers=2, batch=1, samples=5),
    wm_vid=dict(d_model=24, n_heads=2, n_blocks=2, n_window=3, height=12, width=15, rope="vid",
                expansion=2, batch=2, samples=5),
    wm_groupnorm=dict(d_model=64, n_heads=1, n_blocks=1, n_window=2, height=8, width=8,
                      patch_size=2, expansion=1, batch=2, samples=0,
                      keep=("out.", "grad.patch.", "grad.registers", "grad.norm.w",
                            "grad.modulation", "step1.patch.init_conv_seq.2", "step1.norm.w")),
)


def make(folder):
    for number, (name, case) in enumerate(CASES.items()):
        torch.manual_seed(number)
        case = dict(case)
        batch, samples = case.pop("batch"), case.pop("samples")
        keep = case.pop("keep", ("",))
        cfg = {**DEFAULTS, **case, "sample_steps": 3, **OPTIMISER}
        model = WorldModel(cfg, attn="vanilla")
        with torch.no_grad():
            for key, p in model.named_parameters():  # ones and zeros would hide mistakes
                if p.ndim == 1:
                    p.add_(0.2 * torch.randn_like(p))
                p.copy_(p.bfloat16())
        frames, picture = cfg["n_window"], (3, cfg["height"], cfg["width"])
        inputs = {
            "in.frames": torch.rand(batch, frames, *picture) * 2 - 1,
            "in.noise": torch.randn(batch, frames, *picture),
            "in.ts": torch.randn(batch, frames).sigmoid(),
            "in.actions": torch.randint(0, cfg["n_actions"], (batch, frames)),
        }
        if samples:
            inputs["in.sample.noise"] = torch.randn(1, samples, *picture)
            inputs["in.sample.actions"] = torch.randint(0, cfg["n_actions"], (1, samples))
        params = {f"param.{k}": p.detach().bfloat16().clone() for k, p in model.named_parameters()}
        wide = {k: t.double() if t.is_floating_point() and k != "in.ts" else t
                for k, t in inputs.items()}
        out = results(model.double(), cfg, wide)
        out = {k: t if k.startswith("out.loss") else t.float().contiguous()
               for k, t in out.items() if k.startswith(keep)}
        path = Path(folder) / f"{name}.safetensors"
        save_file(params | inputs | out, path, metadata={"config": json.dumps(cfg)})
        print(f"{path}  {path.stat().st_size / 1024:.0f} KiB")


def verify(path):
    with safe_open(path, "pt") as f:
        cfg = json.loads(f.metadata()["config"])
        held = {k: f.get_tensor(k) for k in f.keys()}
    model = WorldModel(cfg, attn="sdpa")
    model.load_state_dict({k[6:]: t.float() for k, t in held.items() if k.startswith("param.")})
    out = results(model, cfg, {k: t for k, t in held.items() if k.startswith("in.")})
    worst, failed = {}, 0
    for key, t in held.items():
        if key.startswith(("param.", "in.")):
            continue
        scale = 1 if key.startswith("out.") else t.abs().max().item()
        error = (out[key] - t).abs().max().item() / (scale or 1)
        kind = key.split(".")[0] if not key.startswith("out.") else key
        worst[kind] = max(worst.get(kind, 0), error)
        failed += not error < (1e-4 if key.startswith("out.") else 1e-3)
    print(f"{path}: " + ", ".join(f"{k} {e:.1e}" for k, e in sorted(worst.items())))
    return failed


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "make":
        make(sys.argv[2] if len(sys.argv) > 2 else "test/fixtures")
    elif len(sys.argv) > 2 and sys.argv[1] == "verify":
        sys.exit(1 if sum(verify(p) for p in sys.argv[2:]) else 0)
    else:
        sys.exit(__doc__)
