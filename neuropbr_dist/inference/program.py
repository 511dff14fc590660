"""A generator as a program of `torch.export`: one file, run with torch alone, none of this package."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from neuropbr_dist.data.device import normalise_views
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import replacing, writing
from neuropbr_dist.inference.generator import InferenceGenerator, load_generator
from neuropbr_dist.inference.predict import check_multiple
from neuropbr_dist.materials.rectify import resample
from neuropbr_dist.models import size_multiple

SUFFIX = ".pt2"
BOUND = 1e-3
"""Largest difference to the generator's own outputs that a program may have."""


def export_program(checkpoint: Path | str, out: Path | str, size: int | None = None) -> Path:
    """Write a program that takes uint8 views (B, 3, 3, S, S) and gives maps (B, 8, S, S) float32.

    Of a model that rectifies views it also takes their cameras (see `Rectifying`).
    It is loaded again and its outputs are compared before the file appears. Run it by
    `torch.export.load(PATH).module()(views)`, with the torch that wrote it or a newer one. Its limits: one side S
    (shapes are traced), any batch; float32 on the CPU, unless moved by
    `torch.export.passes.move_to_device_pass`. The file is a zip that holds the weights whole.

    Args:
        checkpoint: whatever `load_generator` takes.
        out: a file ending in `.pt2`.
        size: S in pixels; the run's `data.image_size` if None.

    Raises:
        UserError: a name or a size that can't be; or the program's outputs differ.
    """
    out = Path(out)
    if out.suffix != SUFFIX:
        raise UserError(f"{out}: a program's name must end in {SUFFIX}")
    if size is not None and size < 1:
        raise UserError(f"--size {size}: must be 1 or more")
    model = load_generator(checkpoint)
    size = model.config.data.image_size if size is None else size
    if size is None:
        raise UserError("--size: the run has no data.image_size; name the side in pixels")
    check_multiple(size, size_multiple(model.config.model), "--size")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as part:
            torch.export.save(trace(model, size), buffer := io.BytesIO())
            part.write_bytes(buffer.getbuffer())
            check_difference(part, model, size, out)
    return out


@torch.no_grad()
def trace(model: InferenceGenerator, size: int) -> torch.export.ExportedProgram:
    """Return the generator's graph at one side, with the batch left open."""
    batch = torch.export.Dim("batch")
    module: nn.Module = Rectifying(model) if model.on_plane else model
    inputs = some_inputs(model, 2, size)
    return torch.export.export(module, inputs, dynamic_shapes=({0: batch},) * len(inputs), strict=False)


@torch.no_grad()
def check_difference(path: Path, model: InferenceGenerator, size: int, named: Path) -> None:
    """Run the file as its user would, at another batch than it was traced with."""
    inputs = some_inputs(model, 1, size)
    found = torch.export.load(path).module()(*inputs)
    expected = Rectifying(model)(*inputs) if model.on_plane else model(*inputs)
    difference = float((found - expected).abs().max())
    if not difference <= BOUND:
        raise UserError(
            f"{named} was not written: its outputs differ by {difference:.1e} from the generator's; allowed: {BOUND}"
        )


class Rectifying(nn.Module):
    """A generator of rectified views, with the cameras' numbers as a camera file has them."""

    def __init__(self, model: InferenceGenerator) -> None:
        super().__init__()
        self.model = model

    def forward(self, views: Tensor, map_to_view: Tensor, eye: Tensor, wrap: Tensor) -> Tensor:
        """
        Args:
            views: (B, 3, 3, S, S) uint8 RGB.
            map_to_view: (B, 3, 3, 3) float32, one 3 x 3 a view; zeros: not known.
            eye: (B, 3, 3) float32; zeros: not known.
            wrap: (B,) bool: whether the plane repeats.

        Returns:
            (B, 8, S, S) float32.
        """
        repeats = wrap[:, None, None].expand(-1, eye.shape[1], 1).to(eye.dtype)
        cameras = torch.cat([map_to_view.flatten(-2), eye, torch.ones_like(repeats), repeats], dim=-1)
        normalised = normalise_views(views, self.model.config.transform)
        side = views.shape[-1]
        return self.model(resample(normalised, cameras, side, (0, side)))


def some_inputs(model: InferenceGenerator, batch: int, size: int) -> tuple[Tensor, ...]:
    """Return what `trace` and its check feed: noise, and cameras that stand a little apart, the last of
    them missing."""
    noise = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (batch, 3, 3, size, size), dtype=torch.uint8, generator=noise)
    if not model.on_plane:
        return (views,)
    straight = torch.tensor([[1.0, 0.0, 0.5], [0.0, -1.0, 0.5], [0.0, 0.1, 1.0]])
    map_to_view = straight * torch.tensor([1.0, 0.9, 0.0])[:, None, None]
    map_to_view[1, 2, 2] = 1.0
    eye = torch.tensor([[0.0, 0.1, 1.0], [0.2, 0.0, 1.2], [0.0, 0.0, 0.0]])
    wrap = torch.arange(batch) % 2 == 0
    return views, map_to_view.repeat(batch, 1, 1, 1), eye.repeat(batch, 1, 1), wrap
