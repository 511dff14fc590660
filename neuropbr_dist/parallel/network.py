"""The one interface through which the GAN step sees a network, sharded or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuropbr_dist.fragment import Fragment
from neuropbr_dist.models.norm import commit_statistics, no_statistics
from neuropbr_dist.parallel.activation import has_batch_statistics


@dataclass(frozen=True, kw_only=True)
class Adam:
    """AdamW's settings for one network, by torch's names."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float
    eps: float


class StepResult(NamedTuple):
    """Result of one optimizer step; both tensors stay on the device."""

    grad_norm: Tensor  # () float32, before clipping; not finite: there was no update
    finite: Tensor  # () bool; False: the update was skipped on all ranks alike


class Network(ABC):
    """One network (generator or discriminator) with its optimizer, on any engine.

    A step is: `sync_gradients(last)`, forward, `backward` for every micro-batch,
    then `step` once. Losses are this rank's part of the sum over the global
    batch; gradients come out as the sum over ranks.
    """

    module: nn.Module
    """The plain module, for names, `train()`/`eval()` and buffers."""

    replicated = False
    """Whether every rank holds the whole state."""

    _frozen = False

    @abstractmethod
    def __call__(self, x: Tensor) -> Any:
        """Run the forward pass in the engine's precision, on this rank's device.

        The generator takes views (B, 3, C, H, W) and gives maps (B, 8, H, W); the discriminator takes
        maps (B, 8, H, W), or maps and views (B, 11, H, W), and gives logits (B, 1, h, w), or a tuple of
        them and of its features (`models.Judgement`).
        """

    def pair(self, a: Tensor, b: Tensor) -> tuple[Any, Any]:
        """Return the outputs of two batches, (A, ...) and (B, ...); by one pass over both where the norm
        layers don't mix samples.

        One pass gathers sharded weights once. And with two passes before one backward ZeRO-3
        failed on two GPUs, a parameter twice in its bucket; with one it trains on four.
        """
        if has_batch_statistics(self.module):
            return self(a), self(b)
        both, sizes = self(torch.cat([a, b])), [len(a), len(b)]
        if isinstance(both, tuple):
            of_a, of_b = zip(*(part.split(sizes) for part in both), strict=True)
        else:
            of_a, of_b = both.split(sizes)
        return of_a, of_b

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let gradients pass through to the input inside; none are kept, and no batch statistics are noted.

        Backward passes through this network belong inside as well: activation
        checkpointing runs the forward again there.
        """
        trained = {name for name, p in self.module.named_parameters() if p.requires_grad}
        self._require_grad(trained, False)
        self._frozen = True
        try:
            with no_statistics():
                yield
        finally:
            self._frozen = False
            self._require_grad(trained, True)

    def _require_grad(self, names: set[str], flag: bool) -> None:
        # Looked up afresh: FSDP2 yields other parameter objects while unsharded.
        for name, p in self.module.named_parameters():
            if name in names:
                p.requires_grad_(flag)

    @abstractmethod
    def sync_gradients(self, last: bool) -> None:
        """Say before a micro-batch's forward whether it is the step's last one."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this rank's share of the global batch's loss, a scalar."""

    @abstractmethod
    def apply(self) -> StepResult:
        """Clip, update, zero the gradients; a non-finite gradient leaves the update out on all ranks alike."""

    def step(self) -> StepResult:
        """Clip, update, zero the gradients, move batch-norm statistics once."""
        result = self.apply()
        commit_statistics(self.module)
        return result

    @abstractmethod
    def set_learning_rate(self, lr: float) -> None: ...

    def take_batches(self, ds_config: Mapping[str, Any]) -> None:  # noqa: B027
        """Take steps of another number of micro-batches from now on, as a DeepSpeed configuration names them."""

    def reduce_gradients(self, *, at_once: bool) -> None:  # noqa: B027
        """Average gradients over the ranks after the backward from now on, or as the engine does by itself."""

    @abstractmethod
    def fragments(self) -> list[Fragment]:
        """Return this rank's pieces of the float32 masters and their state, as live views.

        Parameters (`param/NAME`), Adam moments (`exp_avg/NAME`, `exp_avg_sq/NAME`), buffers (`buffer/NAME`).
        """

    def masters(self) -> list[Tensor]:
        """Return the parameters' pieces among `fragments`, in their order, 1-D, live."""
        return [piece.data for piece in self.fragments() if piece.name.startswith("param/")]

    @abstractmethod
    def counters(self) -> dict[str, float]:
        """Return small host-side state: Adam's step count and, under fp16, the loss scale."""

    @abstractmethod
    def loaded(self, counters: dict[str, float]) -> None:
        """Take `counters` and rebuild what is derived from `fragments` after a load into them."""

    def refresh(self) -> None:  # noqa: B027
        """Rebuild what is computed with (low-precision copies, say) after a write into the masters. Collective."""

    def buffer_fragments(self) -> list[Fragment]:
        """Return the module's buffers, whole: every rank holds them."""
        return [Fragment.whole(f"buffer/{name}", b) for name, b in self.module.named_buffers()]
