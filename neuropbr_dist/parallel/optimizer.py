"""AdamW over plain local tensors: clip, skip and scale without a host sync.

FSDP2's parameters are DTensors; their local shards are handed in here as plain
tensors, so that one optimizer serves replicated and sharded networks and the
host never goes through DTensor dispatch for every parameter.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from neuropbr_dist.fragment import Fragment
from neuropbr_dist.parallel.network import Adam, Network, StepResult

INITIAL_SCALE, GROWTH_INTERVAL, SMALLEST_SCALE = 2.0**16, 2000, 1.0


def sum_of_squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Return the sum of all squares as float64, (), on the tensors' device: 0 of none, where ranks outnumber rows.

    In float32 its last bits would depend on the order of adding up, so on how tensors are cut into shards and where
    in memory they lie.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(tensors, 2, torch.float64)).square().sum()


class ClippedAdamW:
    """Fused AdamW with global-norm clipping and a device-side skip of non-finite updates.

    Args:
        params: name -> local tensor; float32 (or float64) masters.
        adam: learning rate, betas, decay, eps.
        clip: largest global gradient norm, or None.
        group: process group over which the tensors are sharded; None: local
            gradients are whole.
        fp16: scale losses dynamically (Micikevicius et al. 2018).
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        adam: Adam,
        clip: float | None,
        group: dist.ProcessGroup | None = None,
        fp16: bool = False,
    ) -> None:
        self.params, self.clip, self.group = params, clip, group
        tensors = list(params.values())
        self.device, self.dtype = tensors[0].device, tensors[0].dtype
        self.adamw: Any = torch.optim.AdamW(tensors, **vars(adam), fused=True)
        self.rate: Tensor | None = None
        if self.device.type == "cuda" and self.dtype == torch.float32:
            # Read there, a replayed update takes a rate that the host has set since. float32, as the kernel wants it.
            self.rate = torch.full((), adam.lr, device=self.device)
            for settings in self.adamw.param_groups:
                settings.update(lr=self.rate, capturable=True)
        for p in tensors:  # lazily made by torch; a save before the first step needs them
            self.adamw.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        self.scale = torch.full((), INITIAL_SCALE, device=self.device) if fp16 else None
        self.growth = torch.zeros((), dtype=torch.int32, device=self.device)

    def grad_norm(self, grads: list[Tensor]) -> Tensor:
        """Return the L2 norm over all gradients and, if sharded, all ranks of `group`."""
        squared = sum_of_squares(grads, self.device)
        if self.group is not None:
            dist.all_reduce(squared, group=self.group)
        # Not finite from where squares aren't in the moments' precision.
        return squared.to(self.dtype).sqrt()

    def step(self, grads: Iterable[Tensor | None]) -> StepResult:
        """Update from `grads`, one for each of `params` in order; None counts as absent."""
        pairs = [
            (p, g)
            for p, g in zip(self.params.values(), grads, strict=True)
            if g is not None and p.numel() > 0
        ]
        present = [g for _, g in pairs]
        norm = self.grad_norm(present)
        if self.scale is not None:
            norm = norm / self.scale
        finite = torch.isfinite(norm)
        self._scale_gradients(present, norm)
        for p, g in pairs:
            p.grad = g
        # The fused kernel reads this flag on the device and leaves everything as it is.
        self.adamw.found_inf = (~finite).float()
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        if self.scale is not None:
            finite = self._update_scale(finite)
        return StepResult(norm, finite)

    def _scale_gradients(self, grads: list[Tensor], norm: Tensor) -> None:
        if self.clip is None and self.scale is None:
            return
        factor = torch.ones_like(norm)
        if self.clip is not None:
            factor = torch.clamp(self.clip / (norm + 1e-6), max=1.0)
        if self.scale is not None:
            factor = factor / self.scale
        if grads:
            torch._foreach_mul_(grads, factor)

    def _update_scale(self, finite: Tensor) -> Tensor:
        """Lower the scale after an overflow, which counts as a fault only at the smallest one."""
        assert self.scale is not None
        at_floor = self.scale <= SMALLEST_SCALE
        torch._amp_update_scale_(self.scale, self.growth, (~finite).float(), 2.0, 0.5, GROWTH_INTERVAL)
        self.scale.clamp_(min=SMALLEST_SCALE)
        return finite | ~at_floor

    def set_learning_rate(self, lr: float) -> None:
        if self.rate is not None:
            self.rate.fill_(lr)
            return
        for group in self.adamw.param_groups:
            group["lr"] = lr

    def counters(self) -> dict[str, float]:
        """Return Adam's step count and, under fp16, the loss scale; reads the device."""
        steps = [state["step"] for state in self.adamw.state.values()]
        found = {"step": float(torch.stack([s.cpu() for s in steps]).max()) if steps else 0.0}
        if self.scale is not None:
            found |= {"loss_scale": float(self.scale), "growth": float(self.growth)}
        return found

    def load_counters(self, counters: dict[str, float]) -> None:
        for state in self.adamw.state.values():
            state["step"].fill_(counters["step"])
        if self.scale is not None and "loss_scale" in counters:
            self.scale.fill_(counters["loss_scale"])
            self.growth.fill_(int(counters["growth"]))


class ClippedNetwork(Network):
    """A network whose masters are updated by `ClippedAdamW`, whole or sharded on dimension 0."""

    optimizer: ClippedAdamW
    world: int
    """Ranks over which the engine averages gradients."""
    _masters: list[Tensor] | None = None

    def backward(self, loss: Tensor) -> None:
        loss, scale = loss * self.world, self.optimizer.scale
        (loss if scale is None else loss * scale.to(loss.device)).backward()

    @abstractmethod
    def piece(self, p: Any) -> tuple[Tensor, int]:
        """Return what this rank holds of parameter `p`, 1-D, and its offset in the flattened parameter."""

    def set_learning_rate(self, lr: float) -> None:
        self.optimizer.set_learning_rate(lr)

    def fragments(self) -> list[Fragment]:
        found, trained, state = [], self.optimizer.params, self.optimizer.adamw.state
        for name, p in self.module.named_parameters():
            data, start = self.piece(p)
            found.append(Fragment(f"param/{name}", data, start, p.shape))
            for key in ("exp_avg", "exp_avg_sq") if name in trained else ():
                found.append(Fragment(f"{key}/{name}", state[trained[name]][key].view(-1), start, p.shape))
        return found + self.buffer_fragments()

    def masters(self) -> list[Tensor]:
        # Looked up once: an average asks at every step, the optimizer holds the same tensors for good, and a load writes
        # into them.
        if self._masters is None:
            self._masters = super().masters()
        return self._masters

    def counters(self) -> dict[str, float]:
        return self.optimizer.counters()

    def loaded(self, counters: dict[str, float]) -> None:
        self.optimizer.load_counters(counters)
