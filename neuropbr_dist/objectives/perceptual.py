"""LPIPS of shaded maps (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric").

It needs the package `lpips` (the extra of that name), and AlexNet's ImageNet weights from torch's hub cache or its server.
"""

from __future__ import annotations

import logging
import socket
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from neuropbr_dist.materials.decoding import linear_to_srgb
from neuropbr_dist.objectives.rendering import EYE_AT, fixed_lamps, radiance
from neuropbr_dist.ranks import all_gather_object

log = logging.getLogger(__name__)

EVERY = 4
"""Step between the lamps of `shaded_metrics` that LPIPS looks at: every fourth."""
_CONNECT_S = 3.0


class PerceptualUnavailable(Exception):
    """Absence of LPIPS; its text says why, for a person."""


class Perceptual:
    """Maps (B, 8, H, W), predicted and true -> LPIPS (B,), 0 for pictures that look the same.

    Args:
        network: pictures in [-1, 1], two of (B, 3, H, W) -> (B, 1, 1, 1).
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, device: torch.device) -> Perceptual:
        """Return LPIPS by AlexNet.

        Raises:
            PerceptualUnavailable: package or weights can't be had.
        """
        try:
            import lpips
            from torchvision.models import AlexNet_Weights
        except ImportError as error:
            raise PerceptualUnavailable(f"pip install 'neuropbr_dist[lpips]' ({error})") from error
        require_weights(AlexNet_Weights.IMAGENET1K_V1.url)
        try:
            return cls(lpips.LPIPS(net="alex", verbose=False).to(device))
        except OSError as error:  # the download
            raise PerceptualUnavailable(" ".join(str(error).split())) from error

    @torch.no_grad()
    def __call__(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the mean LPIPS (B,) over the lamps, of maps (B, 8, H, W)."""
        found = []
        for lamp in fixed_lamps()[::EVERY].to(pred):
            place, eye = (
                lamp.expand(len(pred), 1, 3),
                pred.new_tensor([0.0, 0.0, EYE_AT]).expand(len(pred), 1, 3),
            )
            ours, theirs = (
                linear_to_srgb(radiance(maps, place, eye)[:, 0].clamp(0, 1)) * 2 - 1
                for maps in (pred, target)
            )
            found.append(self.network(ours.float(), theirs.float()).flatten(1).mean(1))
        return torch.stack(found).mean(0)


def require_weights(url: str) -> None:
    """Raise `PerceptualUnavailable` where weights are neither in torch's hub cache nor to be fetched."""
    parts = urlsplit(url)
    if (Path(torch.hub.get_dir()) / "checkpoints" / Path(parts.path).name).is_file():
        return
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=_CONNECT_S).close()
    except OSError as error:
        raise PerceptualUnavailable(
            f"{Path(parts.path).name} is not in {torch.hub.get_dir()}/checkpoints and {parts.hostname} can't be reached ({error})"
        ) from error


def load_perceptual(device: torch.device) -> Perceptual | None:
    """Return LPIPS where every rank can have it; a line says why not, if its package is there. Collective."""
    found: Perceptual | None = None
    fault = ""
    try:
        found = Perceptual.load(device)
    except PerceptualUnavailable as error:
        fault = str(error)
    faults = [fault for fault in all_gather_object(fault) if fault]
    if faults and find_spec("lpips") is not None:
        log.info(f"No LPIPS: {faults[0]}")
    return None if faults else found
