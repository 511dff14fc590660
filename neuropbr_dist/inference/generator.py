"""A trained generator from any checkpoint or exported file, on one device."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from neuropbr_dist.checkpoint.tensor_file import TensorFile
from neuropbr_dist.checkpoint.weights import check_finite, mismatches, read_weights, step_of
from neuropbr_dist.config import TrainConfig, as_one_stage, as_saved, from_yaml
from neuropbr_dist.data.device import normalise_views, shown
from neuropbr_dist.errors import UserError, some
from neuropbr_dist.materials.rectify import rectify
from neuropbr_dist.models import Generator


class InferenceGenerator(Generator):
    """`Generator` that also takes pictures as they are, with the run's own normalisation.

    Args:
        config: of the run that trained it.
        origin: the file or checkpoint that the weights are from, for messages.
        step: optimizer steps that it was trained for.
        averaged: the weights are the run's moving average (`training.ema_decay`).
    """

    def __init__(self, config: TrainConfig, origin: Path, step: int, averaged: bool = False) -> None:
        super().__init__(config.model)
        self.config, self.origin, self.step, self.averaged = config, origin, step, averaged

    @property
    def on_plane(self) -> bool:
        """Whether the generator takes rectified views (`model.align = plane`)."""
        return self.config.model.align == "plane"

    def forward(self, views: Tensor, cameras: Tensor | None = None) -> Tensor:
        """
        Args:
            views: (B, 3, 3, H, W) RGB; uint8 is normalised, and rectified, here as in training, floats
                are taken as they come out of `prepare`. H and W multiples of `size_multiple`.
            cameras: see `prepare`.

        Returns:
            (B, 8, H, W) float32: albedo RGB, roughness, metallic in [0, 1], unit normal XYZ.
        """
        return super().forward(self.prepare(views, cameras) if views.dtype == torch.uint8 else views)

    @torch.no_grad()
    def seen(self, views: Tensor, cameras: Tensor | None = None) -> Tensor:
        """Return the pictures that the network sees, for a person: uint8 (3, 3, S, S) of one material, on the CPU.

        Args:
            views, cameras: of one material, as for `prepare`.
        """
        if cameras is None:
            return views.cpu()
        device = next(self.parameters()).device
        return shown(self.prepare(views[None].to(device), cameras[None])[0], self.config.transform).cpu()

    def prepare(
        self, views: Tensor, cameras: Tensor | None = None, rows: tuple[int, int] | None = None
    ) -> Tensor:
        """Return pictures as the network takes them: normalised and, with `model.align = plane`, rectified.

        Args:
            views: (B, 3, 3, H, W) uint8.
            cameras: (B, 3, 14) on the host, see `materials.plane.encode`; with `model.align = plane` alone.
            rows: first row of the map and the one after the last; None: all.

        Raises:
            UserError: cameras are needed and not given.
        """
        dtype = next(self.parameters()).dtype
        first, last = rows or (0, views.shape[-2])
        if not self.on_plane:
            return normalise_views(views[..., first:last, :], self.config.transform, dtype)
        if cameras is None:
            raise UserError(
                f"{self.origin}: rectifies views by their cameras (model.align = plane); name them"
            )
        normalised = normalise_views(views, self.config.transform)
        return rectify(normalised, cameras, views.shape[-1], (first, last)).to(dtype)


def load_generator(path: str | os.PathLike) -> InferenceGenerator:
    """Return the trained generator, on the CPU in float32, in eval mode, its parameters without gradients.

    The weights are the run's moving average where it keeps one (`training.ema_decay`).

    Args:
        path: a run's folder (its newest good checkpoint), a checkpoint or a name in that folder, written
            by any engine at any world size; or what `launch/export.py` wrote, file or folder.

    Raises:
        UserError: nothing there, all of it damaged, or weights that don't fit their configuration.
    """
    return build(*read_weights(Path(path)))


def build(weights: TensorFile, origin: Path) -> InferenceGenerator:
    """Return the generator around its weights.

    Raises:
        UserError: the configuration can't be read, or is of another architecture than the weights; or these hold a
            NaN or an infinity.
    """
    config = as_saved(from_yaml(weights.config_yaml, f"{origin}: its configuration"))
    if config.training.stages:  # the side that the run ends with is the model's
        config = as_one_stage(config, config.training.stages[-1])
    step = step_of(weights.state)
    try:
        with torch.device("meta"):  # no memory and no random numbers for what is replaced at once
            model = InferenceGenerator(config, origin, step, weights.state.get("ema") is True)
    except (RuntimeError, OverflowError, TypeError, MemoryError) as error:
        raise UserError(
            f"{origin}: no network has the sizes of its configuration ({str(error)[:100]})"
        ) from error
    wanted = model.state_dict()
    faults = mismatches(wanted, weights.tensors)
    faults += [f"{name} (not in this architecture)" for name in weights.tensors if name not in wanted]
    if faults:
        raise UserError(f"{origin}: the weights don't fit their own configuration: {some(faults, 5)}")
    check_finite(weights.tensors, str(origin), "its maps would be black")
    model.load_state_dict(weights.tensors, assign=True)
    return model.eval().requires_grad_(False)
