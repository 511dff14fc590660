"""The configuration that an upstream checkpoint means: its architecture by the tensors, the rest by its own fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from neuropbr_dist.config import TrainConfig, as_saved, from_yaml, resolve, set_text
from neuropbr_dist.config.fields import field_types, fit
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference.upstream_file import UpstreamFile

# Blocks of the four stages, and whether they are bottlenecks (He et al. 2016, table 1).
BACKBONES: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
KEPT_PARTS = ("model", "transform", "loss", "optimizer")
"""Parts of upstream's configuration whose fields are taken where we have one of that name and type."""


def config_of(file: UpstreamFile, origin: str, assignments: Sequence[str] = ()) -> TrainConfig:
    """Return our configuration of upstream's networks.

    Args:
        file: with upstream's settings, or our own configuration if we wrote it.
        origin: for messages.
        assignments: `part.field=value`, for what neither tensors nor settings tell.

    Raises:
        UserError: an architecture that isn't ours, or a wrong assignment.
    """
    if file.config_yaml is not None:
        cfg = from_yaml(file.config_yaml, f"{origin}: its configuration")
    else:
        cfg = TrainConfig()
        take_settings(cfg, file.settings)
        take_generator(cfg, file.generator, origin)
        take_discriminator(cfg, file.discriminator, file.settings, origin)
        cfg.model.norm = cfg.model.encoder_norm = "batch"  # upstream has no other
    cfg.model.encoder_pretrained = False  # its weights are here
    for assignment in assignments:
        set_text(cfg, assignment)
    return resolve(as_saved(cfg))


def take_settings(cfg: TrainConfig, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Take fields of the same name and type; paths and the loop's own settings are another machine's."""
    for part in KEPT_PARTS:
        ours, theirs = getattr(cfg, part), part_of(settings, part)
        for name, kind in field_types(ours).items():
            if name in theirs:
                try:
                    setattr(ours, name, fit(theirs[name], kind))
                except TypeError:
                    continue  # checked below where it matters: the tensors tell
    sizes = part_of(settings, "data").get("image_size")
    if isinstance(sizes, tuple | list) and all(type(side) is int for side in sizes) and len(set(sizes)) == 1:
        cfg.data.image_size = sizes[0]


def part_of(settings: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """Return the fields of a part of upstream's configuration; {} where it is none."""
    found = settings.get(part)
    return found if isinstance(found, Mapping) else {}


def take_generator(cfg: TrainConfig, theirs: Mapping[str, Tensor], origin: str) -> None:
    """Take everything of the generator that names and shapes tell; the number of heads they don't."""
    m = cfg.model
    if "encoder.encoder_stack.0.weight" not in theirs:
        raise UserError(
            f"{origin}: its encoder is no ResNet (first tensors: {', '.join(list(theirs)[:3])}); only "
            "upstream's encoder_type = resnet has a counterpart here: its U-Net encoders keep full "
            "resolution for two levels and decode at twice the picture's side"
        )
    depths = tuple(count(theirs, rf"encoder\.encoder_stack\.{stage}\.(\d+)\.") for stage in range(4, 8))
    bottleneck = "encoder.encoder_stack.4.0.conv3.weight" in theirs
    backbone: Any = BACKBONES.get((depths, bottleneck))
    if backbone is None:
        raise UserError(
            f"{origin}: stages of {depths} blocks; allowed: those of {', '.join(BACKBONES.values())}"
        )
    m.encoder_type, m.encoder_backbone = "resnet", backbone
    m.encoder_stride = 2 if "decoder.sr_head.0.weight" in theirs else 1
    m.use_transformer = "fusion.fusion.weight" in theirs
    m.transformer_dim = rows(theirs, "fusion.fusion.weight" if m.use_transformer else "fusion.weight", origin)
    if m.use_transformer:
        m.transformer_depth = count(theirs, r"fusion\.blocks\.(\d+)\.")
        m.transformer_mlp_ratio = rows(theirs, "fusion.blocks.0.mlp.fc1.weight", origin) / m.transformer_dim


def take_discriminator(
    cfg: TrainConfig,
    theirs: Mapping[str, Tensor] | None,
    settings: Mapping[str, Mapping[str, Any]],
    origin: str,
) -> None:
    """Take what tensors and settings tell of the discriminator; None: no GAN."""
    m = cfg.model
    m.use_gan = theirs is not None
    if theirs is None:
        return
    if part_of(settings, "model").get("discriminator_type", "configurable") != "configurable":
        raise UserError(
            f"{origin}: discriminator_type = simple has no counterpart here; --no-discriminator leaves it out"
        )
    m.discriminator_ndf = rows(theirs, "model.0.weight", origin)
    m.discriminator_n_layers = sum(name.endswith("running_mean") for name in theirs)


def rows(theirs: Mapping[str, Tensor], name: str, origin: str) -> int:
    """Return the first side of a tensor. Raises a UserError where it isn't there, or has none."""
    tensor = theirs.get(name)
    if tensor is None or not tensor.ndim or not len(tensor):
        found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
        raise UserError(f"{origin}: {name} is {found}; not upstream's networks")
    return len(tensor)


def count(names: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many different numbers the pattern finds at the start of names."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})
