"""One GAN step, on any engine.

What a step does depends on the global batch only, not on how it is cut into
ranks and micro-batches: both networks' gradients are taken at the same
parameters over all micro-batches, then both step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from neuropbr_dist.data.batch import DeviceBatch
from neuropbr_dist.models import features_of
from neuropbr_dist.parallel import Network, StepResult
from neuropbr_dist.training.objective import Objective


class GanStepResult(NamedTuple):
    """Losses and updates of one step; all tensors stay on the device."""

    losses: dict[str, Tensor]
    """This rank's part of each loss, a detached scalar by name; the sum over ranks is the global batch's mean."""
    generator: StepResult
    discriminator: StepResult | None


def gan_step(
    g: Network, d: Network | None, batch: Sequence[DeviceBatch], objective: Objective, *, d_steps: int = 1
) -> GanStepResult:
    """Update both networks once (and the discriminator `d_steps - 1` times before), and return losses and updates.

    Args:
        g, d: generator and discriminator; `d` None before the GAN starts.
        batch: this rank's micro-batches, equally many on every rank.
        d_steps: discriminator updates per generator update.
    """
    losses: dict[str, Tensor] = defaultdict(lambda: torch.zeros_like(batch[0].weight[0]))

    def judge(d: Network, micro: DeviceBatch, fake: Tensor) -> tuple[Tensor, ...]:
        """Add the discriminator's gradients, one backward for real and fake together; return its features of the real."""
        true, predicted = (objective.judged(maps, micro) for maps in (micro.maps, fake))
        real, generated = d.pair(true, predicted)
        loss = objective.discriminator(real, generated, micro.weight)
        d.backward(loss)
        losses["D_loss"] += loss.detach() / d_steps
        return features_of(real)

    if d:
        for _ in range(d_steps - 1):  # extra updates of D, G fixed
            for micro, last in with_last(batch):
                d.sync_gradients(last)
                with torch.no_grad(), g.frozen():
                    fake = g(micro.views)
                judge(d, micro, fake)
            d.step()

    for micro, last in with_last(batch):  # the joint update
        g.sync_gradients(last)
        fake = g(micro.views)
        if d:
            d.sync_gradients(last)
            features = judge(d, micro, fake.detach())  # by the parameters that judge the generator below
        loss, terms = objective.reconstruction(fake, micro)
        with d.frozen() if d else nullcontext():
            if d:
                judged = objective.judged(fake, micro)
                adversarial, terms_of_d = objective.generator(d(judged), features, micro.weight)
                loss, terms = loss + adversarial, terms | terms_of_d
                del features  # memory that the generator's backward has a use for
            g.backward(loss)
        for name, value in {"G_loss": loss.detach(), **terms}.items():
            losses[name] += value
    d_result = d.step() if d else None
    return GanStepResult(dict(losses), g.step(), d_result)


def with_last(batch: Sequence[DeviceBatch]) -> Iterator[tuple[DeviceBatch, bool]]:
    """Yield each micro-batch and whether it is the step's last: the one on which gradients are reduced."""
    for i, micro in enumerate(batch):
        yield micro, i == len(batch) - 1
