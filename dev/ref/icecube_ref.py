"""Fixtures of the IceCube models: small models run by PyTorch, for test_icecube to reproduce.

    python dev/ref/icecube_ref.py make [FOLDER]        writes the fixtures (default test/fixtures)
    python dev/ref/icecube_ref.py verify FILE...       runs this reference on files of the same form

`make` computes in float64 and stores float32, so that a fixture carries no rounding of its own.
Needs: python3 -m venv VENV && VENV/bin/pip install torch numpy safetensors

A fixture is a safetensors file with the config as JSON in its metadata and
  param.NAME    the parameters (bfloat16 here: the values are exact and the file is half as large)
  in.event, in.sensor_id, in.time, in.charge, in.auxiliary   (N,) pulses in recorded order
  in.direction (B, 3), in.sensor_geometry (5160, 3) in m
  out.direction, out.loss, out.losses3 and out.losses10 (steps on one batch), out.grad_norm
  hierarchical: out.dom_event, out.dom_sensor_id, out.dom_pulse_count (M,), out.dom_embedding (M, C)
  flat: out.dom_vectors (B, max_doms, 4 + 3K), out.dom_valid (B, max_doms)
  grad.NAME, step1.NAME    gradients as the optimiser takes them (clipped where the config has
                           grad_clip), and the parameters after one step of AdamW
Every out.*, grad.* and step1.* may be left out.
"""
import json
import math
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from icecube_model import angle_loss, collate, complete, make_model

OPTIMISER = dict(lr=1e-3, weight_decay=1e-5, grad_clip=1.0)


def grouping(batch, cfg):
    """What a fixture holds of the batch itself."""
    if cfg["model"] != "flat":
        return {"out.dom_event": batch.event, "out.dom_sensor_id": batch.sensor,
                "out.dom_pulse_count": batch.count}
    vectors = batch.vector.new_zeros(batch.events, cfg["max_doms"], batch.vector.shape[1])
    valid = torch.zeros(batch.events, cfg["max_doms"], dtype=torch.uint8)
    for e in range(batch.events):
        mine = batch.vector[batch.event == e]
        vectors[e, :len(mine)], valid[e, :len(mine)] = mine, 1
    return {"out.dom_vectors": vectors, "out.dom_valid": valid}


def results(model, cfg, held, dtype):
    """All that a fixture holds besides inputs and parameters. Changes the model (ten steps)."""
    batch, truth = collate(held, cfg, dtype), held["in.direction"].to(dtype)
    out = grouping(batch, cfg)
    optimiser = torch.optim.AdamW(model.parameters(), cfg.get("lr", 3e-4),
                                  weight_decay=cfg.get("weight_decay", 1e-5))
    losses = []
    for step in range(10):
        optimiser.zero_grad()
        direction, dom = model(batch)
        loss = angle_loss(direction, truth)
        losses.append(loss.detach())
        loss.backward()
        if step == 0:
            out["out.direction"] = direction.detach()
            out["out.loss"] = loss.detach().reshape(1)
            if dom is not None:
                out["out.dom_embedding"] = dom.detach()
        length = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.get("grad_clip", math.inf))
        if step == 0:
            out["out.grad_norm"] = length.reshape(1)
            out |= {f"grad.{k}": p.grad.clone() for k, p in model.named_parameters()}
        optimiser.step()
        if step == 0:
            out |= {f"step1.{k}": p.detach().clone() for k, p in model.named_parameters()}
    out["out.losses3"], out["out.losses10"] = torch.stack(losses[:3]), torch.stack(losses)
    return out


def draw_inputs(events, geometry):
    """Pulses in recorded (time) order: most DOMs have one pulse, a few up to eleven."""
    n_doms = [3 + 4 * e for e in range(events)]
    counts = torch.tensor([1, 1, 2, 1, 1, 1, 3, 1, 11, 1, 1])
    event, sensor = [], []
    for e, n in enumerate(n_doms):
        for i, s in enumerate(torch.randperm(5160)[:n].tolist()):
            pulses = int(counts[(i + e) % len(counts)])
            event += [e] * pulses
            sensor += [s] * pulses
    event, sensor = torch.tensor(event), torch.tensor(sensor)
    time = torch.randint(6000, 21000, event.shape)
    order = (event * 100000 + time).argsort()
    direction = torch.randn(events, 3)
    return {"in.event": event[order], "in.sensor_id": sensor[order], "in.time": time[order],
            "in.charge": torch.rand(len(event)) * 3 + 0.1,
            "in.auxiliary": (torch.rand(len(event)) < 0.7).to(torch.uint8),
            "in.direction": direction / direction.norm(dim=1, keepdim=True),
            "in.sensor_geometry": geometry}


# Odd on purpose: heads of 6 to 10, a limit of DOMs below what the largest event has, K below the
# most pulses of a DOM.
def tree(pooling, **k):
    return dict(model="hierarchical", d_model=20, n_heads=2, t1_layers=1, t2_layers=1, d_ff=28,
                pooling=pooling) | k


def flat(input_mode, **k):
    return dict(model="flat", d_model=18, num_heads=3, num_layers=2, hidden_dim=28,
                head_hidden_dim=11, max_pulses_per_dom=4, max_doms=9, input_mode=input_mode) | k


CASES = dict(
    icecube_mean=tree("mean", d_model=16, t1_layers=2, t2_layers=2, d_ff=20),
    icecube_mean_max=tree("mean+max", max_doms=9),
    icecube_max=tree("max"),
    icecube_class=tree("class", time_scale=3e3),
    icecube_embedding=tree("embedding", t2_layers=2),
    icecube_flat_linear=flat("linear", d_model=20, num_heads=2),
    icecube_flat_mlp=flat("mlp", time_scale=3e3),
    icecube_flat_none=flat("none"),
)


def make(folder):
    for number, (name, case) in enumerate(CASES.items()):
        torch.manual_seed(number)
        cfg = {**complete(case), **OPTIMISER}
        model = make_model(cfg)
        with torch.no_grad():
            for key, p in model.named_parameters():  # ones and zeros would hide mistakes
                if p.ndim == 1 or not p.any() or key == "cls_token":
                    p.add_(0.2 * torch.randn_like(p))
                p.copy_(p.bfloat16())
        geometry = (torch.rand(5160, 3) * 1000 - 500).bfloat16()
        inputs = draw_inputs(4, geometry)
        params = {f"param.{k}": p.detach().bfloat16().clone() for k, p in model.named_parameters()}
        out = results(model.double(), cfg, inputs, torch.float64)
        out = {k: t if k.startswith("out.loss") or not t.is_floating_point()
               else t.float().contiguous() for k, t in out.items()}
        path = Path(folder) / f"{name}.safetensors"
        save_file(params | inputs | out, path, metadata={"config": json.dumps(cfg)})
        print(f"{path}  {path.stat().st_size / 1024:.0f} KiB")


def verify(path):
    with safe_open(path, "pt") as f:
        cfg = complete(json.loads(f.metadata()["config"]))
        held = {k: f.get_tensor(k) for k in f.keys()}
    model = make_model(cfg)
    model.load_state_dict({k[6:]: t.float() for k, t in held.items() if k.startswith("param.")})
    out = results(model, cfg, {k: t for k, t in held.items() if k.startswith("in.")}, torch.float32)
    worst, failed = {}, 0
    for key, t in held.items():
        if key.startswith(("param.", "in.")):
            continue
        scale = 1 if key.startswith("out.") else t.abs().max().item()
        error = (out[key].double() - t.double()).abs().max().item() / (scale or 1)
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
