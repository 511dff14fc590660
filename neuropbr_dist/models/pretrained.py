"""ImageNet weights for the ResNet encoder, from the local cache or a download."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from torch import Tensor
from torch.nn import Module

from neuropbr_dist.models.encoder import PRETRAINED_TAGS, ResNetEncoder

CONNECT_S = 5.0


class PretrainedUnavailable(Exception):
    """The weights can't be had here; the message says why."""


def pretrained_backbone(backbone: str) -> dict[str, Tensor]:
    """Return the state of a `ResNetEncoder` with ImageNet weights (torchvision's, through timm).

    Raises:
        PretrainedUnavailable: not in the cache and not to be downloaded.
    """
    require_reachable(backbone)
    try:
        return ResNetEncoder(backbone, 1, "frozen_batch", pretrained=True).state_dict()
    except OSError as error:  # what the hub's client raises for anything that goes wrong on the way
        raise PretrainedUnavailable(" ".join(str(error).split())) from error


def require_reachable(backbone: str) -> None:
    """Ask before the hub's client does: it retries for 47 s without a network (measured)."""
    from huggingface_hub import constants, try_to_load_from_cache

    repository = f"timm/{backbone}.{PRETRAINED_TAGS[backbone]}"
    if isinstance(try_to_load_from_cache(repository, "model.safetensors"), str):
        return
    if constants.HF_HUB_OFFLINE:
        raise PretrainedUnavailable(f"{repository} is not in the local cache and HF_HUB_OFFLINE is set")
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=CONNECT_S).close()
    except OSError as error:
        raise PretrainedUnavailable(
            f"{repository} is not in the local cache and {address.hostname} can't be reached ({error})"
        ) from error


def load_backbone(encoder: Module, state: dict[str, Tensor]) -> None:
    """Copy pretrained weights into an encoder; a norm kind without running statistics leaves those out.

    What more input channels brought stays as it is.
    """
    own = encoder.state_dict()
    added = {name: value for name, value in own.items() if name.endswith(".extra")}
    encoder.load_state_dict({name: value for name, value in state.items() if name in own} | added)
