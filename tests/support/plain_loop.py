"""The reference: the GAN step in plain PyTorch, one process, the whole batch at once.

No code of `neuropbr_dist.parallel` or `neuropbr_dist.training.step` takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neuropbr_dist.models import features_of
from tests.support.parity import ADAM, Case, global_batch, models, objective


def train_plain(
    case: Case, build: Callable[[Case], tuple[nn.Module, nn.Module]] = models, device: str = "cpu"
) -> dict[str, Any]:
    """State and records in the form of `tests.support.parity.train_row`, and the trained generator."""
    return train_plain_stages([case], build, device)


def train_plain_stages(
    cases: Sequence[Case], build: Callable[[Case], tuple[nn.Module, nn.Module]] = models, device: str = "cpu"
) -> dict[str, Any]:
    """The same, of cases that are trained one after another with the networks of the first."""
    g, d = (net.to(device) for net in build(cases[0]))
    opt_g, opt_d = optimizer(g), optimizer(d)
    records = [record for case in cases for record in plain_steps(case, g, d, opt_g, opt_d, device)]
    state = {f"generator/{name}": value for name, value in state_of(g, opt_g).items()}
    state |= {f"discriminator/{name}": value for name, value in state_of(d, opt_d).items()}
    return {"state": state, "records": records, "generator": g}


def plain_steps(
    case: Case,
    g: nn.Module,
    d: nn.Module,
    opt_g: torch.optim.Optimizer,
    opt_d: torch.optim.Optimizer,
    device: str,
) -> list[dict[str, float]]:
    """All steps of a case; their losses and gradient norms."""
    goal, records = objective(case), []
    for step in range(case.steps):
        batch = global_batch(case, step, device)
        views, maps, weight, _ = batch
        d_losses, true = [], goal.judged(maps, batch)
        for _ in range(case.d_steps - 1):
            d_losses.append(goal.discriminator(d(true), d(goal.judged(g(views).detach(), batch)), weight))
            update(opt_d, torch.autograd.grad(d_losses[-1], trained(d)), case.clip)
        fake = g(views)
        real = d(true)
        d_losses.append(goal.discriminator(real, d(goal.judged(fake.detach(), batch)), weight))
        g_loss, _ = goal.reconstruction(fake, batch)
        g_loss = g_loss + goal.generator(d(goal.judged(fake, batch)), features_of(real), weight)[0]
        d_grads = torch.autograd.grad(d_losses[-1], trained(d))  # both at the same parameters
        g_grads = torch.autograd.grad(g_loss, trained(g))
        records.append(
            {
                "G_loss": g_loss.item(),
                "D_loss": torch.stack(d_losses).mean().item(),
                "G_norm": update(opt_g, g_grads, case.clip),
                "D_norm": update(opt_d, d_grads, case.clip),
            }
        )
    return records


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


def optimizer(net: nn.Module) -> torch.optim.AdamW:
    a, params = ADAM, trained(net)
    # On CUDA the fused kernel, as every engine has it: it takes 1 - beta_2 in float32, 1.3e-5 below 0.001.
    how = {"fused": True} if params[0].is_cuda else {"foreach": False}
    return torch.optim.AdamW(params, lr=a.lr, betas=a.betas, eps=a.eps, weight_decay=a.weight_decay, **how)


def update(opt: torch.optim.Optimizer, grads: tuple[Tensor, ...], clip: float) -> float:
    """Clip and step; the norm before clipping."""
    params = opt.param_groups[0]["params"]
    for p, grad in zip(params, grads, strict=True):
        p.grad = torch.empty_like(p).copy_(
            grad
        )  # in the parameter's strides: the fused kernel takes no others
    norm = torch.nn.utils.clip_grad_norm_(params, clip)
    opt.step()
    return norm.item()


def state_of(net: nn.Module, opt: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and moments under the names of `Network.fragments`."""
    state = {f"param/{name}": p.detach().double().cpu() for name, p in net.named_parameters()}
    for name, p in net.named_parameters():
        if p.requires_grad:
            for key in ("exp_avg", "exp_avg_sq"):
                state[f"{key}/{name}"] = opt.state[p][key].double().cpu()
    return state
