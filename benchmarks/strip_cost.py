"""What ranks that share a sample send each other in a step, counted in the real networks on the meta device."""

from __future__ import annotations

import torch
from torch import Tensor

from neuropbr_dist.config import TrainConfig
from neuropbr_dist.models import Discriminator, Generator, judged_channels, view_channels
from neuropbr_dist.parallel.strips import share_rows
from neuropbr_dist.strip import Edge, Strip


class Arrived:
    """Rows that are there at once."""

    def __init__(self, rows: tuple[Tensor | None, ...]) -> None:
        self.rows = rows

    def wait(self) -> tuple[Tensor | None, Tensor | None]:
        above, below = self.rows
        return above, below


class CountedStrip(Strip):
    """A strip without neighbours that notes what it would send; the shapes that come back are right, no more.

    Args:
        count: strips in a picture. It is one that has neighbours on both sides, if any has.
    """

    def __init__(self, count: int) -> None:
        self.index, self.count = min(1, count - 2), count
        self.rows_sent = self.tokens_sent = self.sums_sent = 0
        """Bytes."""
        self.exchanges = 0

    def with_halo(self, x: Tensor, above: int, below: int, edge: Edge = "zeros") -> Tensor:
        row = x[:, :, :1].numel() * x.itemsize
        self.rows_sent += row * (below * (not self.first) + above * (not self.last))
        self.exchanges += 1
        return x.new_empty(*x.shape[:2], above + x.shape[2] + below, x.shape[3])

    def exchange(self, first: Tensor, last: Tensor, above: int, below: int) -> Arrived:
        sides = ((self.first, first, above), (self.last, last, below))
        self.rows_sent += sum(rows.numel() * rows.itemsize for edge, rows, _ in sides if not edge)
        self.exchanges += 1
        n, c, _, w = first.shape
        return Arrived(tuple(None if edge else first.new_empty(n, c, rows, w) for edge, _, rows in sides))

    def gathered(self, x: Tensor) -> Tensor:
        self.sums_sent += (self.count - 1) * x.numel() * x.itemsize
        self.exchanges += 1
        return x.new_empty(self.count, *x.shape)

    def to_heads(self, tokens: Tensor) -> Tensor:
        b, n, s, h, d = tokens.shape
        self._sent(tokens)
        return tokens.new_empty(b, self.count * n, s, h // self.count, d)

    def to_rows(self, tokens: Tensor) -> Tensor:
        b, n, s, h, d = tokens.shape
        self._sent(tokens)
        return tokens.new_empty(b, n // self.count, s, self.count * h, d)

    def _sent(self, tokens: Tensor) -> None:
        self.tokens_sent += tokens.numel() * tokens.itemsize * (self.count - 1) // self.count
        self.exchanges += 1


def sent_in_a_step(
    cfg: TrainConfig, side: int, ranks: int, dtype: torch.dtype = torch.bfloat16
) -> CountedStrip:
    """Return what a rank sends in a step with one sample of `side` px that `ranks` share: every pass there and back.

    The generator once, the discriminator on a true and a predicted sample, then in the generator's loss. Without
    recomputation, which repeats the generator's way there, and without the losses, whose rows are few.
    """
    strip, rows = CountedStrip(ranks), side // ranks
    with torch.device("meta"), torch.no_grad():
        g, d = Generator(cfg.model).to(dtype), Discriminator(cfg.model).to(dtype)
        for network in (g, d):
            share_rows(network, strip)
        g(torch.empty(1, 3, view_channels(cfg.model), rows, side, dtype=dtype))
        for samples in (2, 1) if cfg.model.use_gan else ():
            d(torch.empty(samples, judged_channels(cfg.model), rows, side, dtype=dtype))
    for name in ("rows_sent", "tokens_sent", "sums_sent", "exchanges"):
        setattr(strip, name, 2 * getattr(strip, name))
    return strip
