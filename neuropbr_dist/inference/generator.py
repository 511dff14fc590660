"""A trained generator from any checkpoint or exported file, on one device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuropbr_dist.checkpoint import Checkpoint, find, open_newest
from neuropbr_dist.config import TrainConfig, as_saved, from_yaml
from neuropbr_dist.data.device import normalise_views, shown
from neuropbr_dist.errors import UserError, some
from neuropbr_dist.inference.tensor_file import SUFFIX, TensorFile, read_tensor_file
from neuropbr_dist.materials.rectify import rectify
from neuropbr_dist.models import Generator

WEIGHTS_FILE = f"model{SUFFIX}"
"""Name of the weights in an exported folder."""
_PREFIXES = ("generator/param/", "generator/buffer/", "generator/ema/")
"""Canonical names that make a `state_dict()`; a later one wins: averaged weights are used where there are any."""


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
        """Whether it takes rectified views (`model.align = plane`)."""
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
    """The trained generator, on the CPU in float32, in eval mode, its parameters without gradients.

    The weights are the run's moving average where it keeps one (`training.ema_decay`).

    Args:
        path: a run's folder (its newest good checkpoint), a checkpoint or a name in that folder, written
            by any engine at any world size; or what `launch/export.py` wrote, file or folder.

    Raises:
        UserError: nothing there, all of it damaged, or weights that don't fit their configuration.
    """
    return build(*read_weights(Path(path)))


def read_weights(path: Path) -> tuple[TensorFile, Path]:
    """The generator's weights as an `inference` file holds them, and where they are from."""
    if (path / WEIGHTS_FILE).is_file() and not find(path):  # beside checkpoints it is an old copy of one
        path = path / WEIGHTS_FILE
    if path.is_file():
        stored = read_tensor_file(path)
        if stored.kind == "inference":
            return stored, path
        origin, tensors, config, step = path, stored.tensors, stored.config_yaml, stored.state.get("step")
    else:
        with open_checkpoint(path) as checkpoint:
            tensors = {name: value for prefix in _PREFIXES for name, value in checkpoint.read(prefix).items()}
            origin, config, step = checkpoint.path, checkpoint.config_yaml, checkpoint.state["step"]
    averaged = any(name.startswith(_PREFIXES[-1]) for name in tensors)
    return TensorFile("inference", _generator_only(tensors), config, {"step": step, "ema": averaged}), origin


def open_checkpoint(path: Path) -> Checkpoint:
    """The newest good checkpoint that `path` may mean.

    Raises:
        UserError: there is none, or none is good.
    """
    checkpoint = open_newest(path, usable=lambda found: _step(found.state))
    if checkpoint is None:
        found = "no checkpoint in this folder" if path.is_dir() else "no such checkpoint or folder"
        raise UserError(f"{path}: {found}; allowed: a run's folder, or a checkpoint in it")
    return checkpoint


def build(weights: TensorFile, origin: Path) -> InferenceGenerator:
    """The generator around its weights.

    Raises:
        UserError: the configuration can't be read, or is of another architecture than the weights; or these hold a
            NaN or an infinity.
    """
    config = as_saved(from_yaml(weights.config_yaml, f"{origin}: its configuration"))
    step = _step(weights.state)
    with torch.device("meta"):  # no memory and no random numbers for what is replaced at once
        model = InferenceGenerator(config, origin, step, weights.state.get("ema") is True)
    wanted = model.state_dict()
    faults = mismatches(wanted, weights.tensors)
    faults += [f"{name} (not in this architecture)" for name in weights.tensors if name not in wanted]
    if faults:
        raise UserError(f"{origin}: the weights don't fit their own configuration: {some(faults, 5)}")
    if bad := [name for name, tensor in weights.tensors.items() if not tensor.isfinite().all()]:
        raise UserError(
            f"{origin}: {len(bad)} of its weights are not finite ({bad[0]}); its maps would be black"
        )
    model.load_state_dict(weights.tensors, assign=True)
    return model.eval().requires_grad_(False)


def _step(state: Mapping[str, Any]) -> int:
    """The step of saved weights. Raises a UserError where there is none."""
    step = state.get("step")
    if type(step) is not int or step < 0:
        raise UserError("its state names no step")
    return step


def _generator_only(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Canonical names -> names of the generator's `state_dict()`; all else is left out."""
    return {
        name.removeprefix(prefix): value
        for prefix in _PREFIXES
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def mismatches(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return the tensors of `wanted` that aren't found in their shape, each with what is wrong."""
    return [f"{name} (missing)" for name in wanted if name not in found] + [
        f"{name} ({tuple(found[name].shape)}; its configuration means {tuple(tensor.shape)})"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
