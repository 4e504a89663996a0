"""Makes test/fixtures/optim.safetensors: three steps of PyTorch's AdamW, and of Muon,
on small odd shapes, everything in float64.

    python dev/ref/optim_ref.py            (needs torch and safetensors; from the project's root)

Tensors: start.NAME, grad0.NAME .. grad2.NAME, and after all three steps step3.NAME. The name's
first word is the group. Gradients are clipped at 10 all together: the first and last are
small enough, the second is not. The learning rate's factors are 0.5, 1, 0.25.
"""
import torch
from safetensors.torch import save_file

SHAPES = {"muon.tall": (13, 6), "muon.wide": (5, 17), "muon.square": (8, 8), "muon.row": (1, 7),
          "adam.matrix": (7, 3), "adam.vector": (11,), "adamw.cube": (2, 3, 5)}
FACTORS, CLIP = [0.5, 1.0, 0.25], 10.0


def orthogonalised(n):
    x = n / (n.norm() + 1e-7)
    tall = n.shape[0] > n.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if tall else x) * max(1, n.shape[0] / n.shape[1]) ** 0.5


class Muon(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"lr": 0.02})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 0.05)
                p.data.mul_(1 - group["lr"] * 1e-5)
                p.data.sub_(group["lr"] * orthogonalised(p.grad.lerp(m, 0.95)))


def main():
    torch.manual_seed(1)
    draw = lambda shape, scale: (torch.randn(shape) * scale).double()
    params = {k: torch.nn.Parameter(draw(s, 0.5)) for k, s in SHAPES.items()}
    of = lambda group: [p for k, p in params.items() if k.startswith(group + ".")]
    optimisers = [Muon(of("muon")),
                  torch.optim.AdamW(of("adam"), 3e-4, (0.9, 0.95), 1e-10, 1e-5),
                  torch.optim.AdamW(of("adamw"), 3e-4, (0.9, 0.999), 1e-8, 1e-5)]
    rates = [[g["lr"] for g in o.param_groups] for o in optimisers]
    out = {"start." + k: p.detach().float() for k, p in params.items()}
    for i, factor in enumerate(FACTORS):
        for k, p in params.items():
            p.grad = draw(p.shape, 3.0 if i == 1 else 0.2)
            out[f"grad{i}.{k}"] = p.grad.float()
        norm = torch.nn.utils.clip_grad_norm_(params.values(), CLIP)
        print(f"step {i}: norm {norm:.6f}")
        for o, rate in zip(optimisers, rates):
            for g, r in zip(o.param_groups, rate):
                g["lr"] = r * factor
            o.step()
    out |= {"step3." + k: p.detach().float() for k, p in params.items()}
    tensors = {k: v.clone().contiguous() for k, v in out.items()}
    save_file(tensors, "test/fixtures/optim.safetensors")


main()
