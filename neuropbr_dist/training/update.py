"""What a step changes: both networks, once, and the average of the generator's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.graphs import Replay
from neuropbr_dist.materials.relighting import Relighting
from neuropbr_dist.parallel import Network, StepResult
from neuropbr_dist.training.ema import WeightAverage, decay_at
from neuropbr_dist.training.objective import Objective
from neuropbr_dist.training.step import GanStepResult, gan_step


class Update:
    """One step's change of the networks, and of the average that follows the generator.

    Args:
        ema: None: there is no average.
        d_steps: updates of the discriminator per update of the generator.
        replayed: record all that a step launches as one CUDA graph (`Setup.replays`). The host then has one launch where
            it had a thousand; what comes out is the same to the bit.
    """

    def __init__(
        self,
        networks: Mapping[str, Network],
        objective: Objective,
        ema: WeightAverage | None,
        *,
        d_steps: int = 1,
        replayed: bool = False,
    ) -> None:
        self.networks, self.objective, self.ema, self.d_steps = networks, objective, ema, d_steps
        self.replayed = replayed
        self.recorded: dict[bool, Recorded] = {}
        """With and without the discriminator: one of them, the other's memory is given back."""

    def __call__(self, batch: Sequence[DeviceBatch], step: int, *, gan: bool) -> GanStepResult:
        """Change everything once.

        Args:
            batch: this rank's micro-batches.
            step: of the run, counted from 1.
            gan: whether the discriminator takes part, if there is one.
        """
        gan = gan and "discriminator" in self.networks
        share = 0.0 if self.ema is None else 1 - decay_at(step, self.ema.decay)
        if not self.replayed:
            return self.plain(batch, share, gan)
        (micro,) = batch
        if gan not in self.recorded:
            self.recorded = {gan: Recorded(self, gan)}
        return self.recorded[gan](micro, share)

    def plain(self, batch: Sequence[DeviceBatch], share: float | Tensor, gan: bool) -> GanStepResult:
        """Change everything once, launch by launch; `share` is how far the average goes towards the weights, of 1."""
        d = self.networks["discriminator"] if gan else None
        result = gan_step(self.networks["generator"], d, batch, self.objective, d_steps=self.d_steps)
        if self.ema is not None:
            self.ema.update(result.generator, share)
        return result


class Recorded:
    """An `Update` with or without the discriminator, replayed as soon as it has been recorded."""

    def __init__(self, update: Update, gan: bool) -> None:
        self.update, self.gan = update, gan
        self.names: list[str] = []
        """Of the losses, in the order in which they come back."""
        self.replay = Replay(self.launch)

    def __call__(self, micro: DeviceBatch, share: float) -> GanStepResult:
        views, maps, weight, relighting = micro
        there = torch.full((), share, device=maps.device)
        values, finite = self.replay(there, views, maps, weight, *(relighting or ()))
        # Taken out of the recording's memory: a log step reads the flags of all steps before it.
        *values, norm, d_norm = values.clone().unbind()
        g, d = finite.clone().unbind()
        losses = dict(zip(self.names, values, strict=True))
        return GanStepResult(losses, StepResult(norm, g), StepResult(d_norm, d) if self.gan else None)

    def launch(
        self, share: Tensor, views: Tensor, maps: Tensor, weight: Tensor, *relighting: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses and gradient norms, the generator's and the discriminator's, and which of the two was updated."""
        micro = DeviceBatch(views, maps, weight, Relighting(*relighting) if relighting else None)
        losses, g, d = self.update.plain([micro], share, self.gan)
        self.names, d = list(losses), d or g
        values = [value.float() for value in (*losses.values(), g.grad_norm, d.grad_norm)]
        return torch.stack(values), torch.stack([g.finite, d.finite])
