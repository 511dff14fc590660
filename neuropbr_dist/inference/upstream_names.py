"""Names of the same tensors here and in NeuroPBR's own training code ("upstream").

Upstream (github.com/josephHelfenbein/NeuroPBR, `training/`) builds on torchvision's ResNet and keeps
the four heads apart; shapes are the same but for those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from neuropbr_dist.models.decoder import HEADS

# Ours -> upstream's, first match wins. `stage` and `conv` are worked out below.
_GENERATOR = [
    (r"encoder\.stem\.(\d)\.", r"encoder.encoder_stack.\1."),
    (r"encoder\.layer([1-4])\.(\d+)\.", "stage"),
    (r"fusion\.merge\.project\.", "fusion.fusion."),
    (r"fusion\.merge\.norm\.", "fusion.norm."),
    (r"fusion\.project\.", "fusion."),
    (r"decoder\.blocks\.(\d+)\.(up|conv)\.(\d)\.", "conv"),
    (r"decoder\.project\.", "decoder.decoders.{blocks}."),
    (r"decoder\.super_resolution\.", "decoder.sr_head."),
]
_CONVS = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}
_HEAD = "decoder.heads."
SPLIT = {f"{_HEAD}{kind}" for kind in ("weight", "bias")}
"""Ours, of which upstream has one a map."""


def generator_name(name: str, blocks: int) -> str:
    """Return upstream's name of a tensor of the generator's `state_dict()` that isn't in `SPLIT`.

    Args:
        blocks: of the decoder.
    """
    for pattern, theirs in _GENERATOR:
        match = re.match(pattern, name)
        if match is None:
            continue
        rest = name[match.end() :]
        if theirs == "stage":
            stage, block = int(match[1]), int(match[2])
            # Ours counts the max pooling before layer 1 as its first element.
            return f"encoder.encoder_stack.{stage + 3}.{block - 1 if stage == 1 else block}.{rest}"
        if theirs == "conv":
            index, part, place = match.groups()
            # Upstream's upsampling is the first element.
            inner = f"upsample.{int(place) + 1}" if part == "up" else f"conv.{_CONVS[place]}"
            return f"decoder.decoders.{index}.{inner}.{rest}"
        return match.expand(theirs.format(blocks=blocks)) + rest
    return name


def discriminator_name(name: str, layers: int) -> str:
    """Return upstream's name of a tensor of the discriminator's `state_dict()`: its layers stand in one sequence."""
    part, *places, kind = name.split(".")
    if part == "output":
        return f"model.{3 * layers + 2}.{kind}"
    block, layer = map(int, places)
    return f"model.{max(3 * block - 1, 0) + layer}.{kind}"


def generator_from(theirs: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return upstream's generator under our `names`; absent tensors, and heads that don't go together, are left out."""
    blocks = decoder_blocks(theirs)
    found = {}
    for name in names:
        if name in SPLIT:
            kind = name.removeprefix(_HEAD)
            parts = [theirs.get(f"{_HEAD}{i}.{kind}") for i in range(len(HEADS))]
            present = [part for part in parts if part is not None]
            shapes = {tuple(part.shape[1:]) if part.ndim else None for part in present}
            if len(present) == len(HEADS) and len(shapes) == 1 and None not in shapes:
                found[name] = torch.cat(present)
        elif (theirs_name := generator_name(name, blocks)) in theirs:
            found[name] = theirs[theirs_name]
    return found


def generator_to(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our generator under upstream's names."""
    blocks = len({name.split(".")[2] for name in ours if name.startswith("decoder.blocks.")})
    found = {}
    for name, value in ours.items():
        if name in SPLIT:
            kind = name.removeprefix(_HEAD)
            for i, part in enumerate(value.split(list(HEADS.values()))):
                found[f"{_HEAD}{i}.{kind}"] = part.clone()
        else:
            found[generator_name(name, blocks)] = value
    return found


def decoder_blocks(theirs: Mapping[str, Tensor]) -> int:
    """Return the number of upsampling blocks of upstream's decoder."""
    pattern = re.compile(r"decoder\.decoders\.(\d+)\.upsample\.")
    return len({match[1] for name in theirs if (match := pattern.match(name))})
