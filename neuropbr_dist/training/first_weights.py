"""Weights that a fresh run starts from instead of random ones (`--init-from`): of another run, on other data."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from neuropbr_dist.checkpoint.weights import check_finite, mismatches, read_networks
from neuropbr_dist.config import (
    ModelConfig,
    TrainConfig,
    as_saved,
    check_same_networks,
    from_yaml,
    with_fields,
)
from neuropbr_dist.config.architecture import UNSET_STATS
from neuropbr_dist.errors import UserError, some
from neuropbr_dist.models import encoder_norm

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class FirstWeights:
    """Weights found in a checkpoint or an exported file; optimizer, schedule and sample order are not taken.

    Args:
        networks: `generator`, its moving average where there is one, and `discriminator`, empty where none was saved.
        saved: the configuration of the run that they are from.
        what: where they are from, for a person.
    """

    networks: dict[str, Weights]
    saved: TrainConfig
    what: str

    @classmethod
    def read(cls, path: Path) -> FirstWeights:
        """Return those of a run's folder, a checkpoint in it, or an exported file. Collective.

        Raises:
            UserError: nothing there, all of it damaged, or weights that aren't finite.
        """
        found, origin = read_networks(path, "generator", "discriminator")
        generator = found["generator"]
        for file in found.values():
            check_finite(file.tensors, f"--init-from {origin}", "nothing can be trained from them")
        saved = as_saved(from_yaml(generator.config_yaml, f"{origin}: its configuration"))
        average = ", moving average" if generator.state.get("ema") is True else ""
        networks = {part: file.tensors for part, file in found.items()}
        return cls(networks, saved, f"{origin} (step {generator.state['step']}{average})")

    def followed(self, cfg: TrainConfig) -> TrainConfig:
        """Return `cfg` with what it leaves open in the networks, and in what they are fed, as the weights had it."""
        before, model = self.saved.model, cfg.model
        settled: dict[str, Any] = {"encoder_pretrained": False}  # nor is anything to be fetched
        settled |= {
            name: getattr(before, name)
            for name in ("skip_merge", "token_embedding", "normals")
            if getattr(model, name) == "auto"
        }
        if model.encoder_norm == "auto":
            settled["encoder_norm"] = encoder_norm(before)
        parts: dict[str, dict[str, Any]] = {"model": settled}
        given = cfg.transform
        if given.use_imagenet_stats == "auto" and (given.mean, given.std) == UNSET_STATS:
            parts["transform"] = {
                field.name: getattr(self.saved.transform, field.name) for field in dataclasses.fields(given)
            }
        return with_fields(cfg, **parts)

    def check(self, cfg: TrainConfig) -> None:
        """Raise a UserError where `cfg`, settled, is of other networks; what cameras bring to a network may be new."""
        free = ("use_gan", "freeze_backbone", "freeze_bn")
        now: dict[str, Any] = {name: getattr(cfg.model, name) for name in free}
        if cfg.model.align == "plane":
            now["align"] = "plane"
        if not (cfg.model.use_gan and self.networks["discriminator"]):  # none is taken: any may be trained
            now |= {
                f.name: getattr(cfg.model, f.name)
                for f in dataclasses.fields(ModelConfig)
                if f.name.startswith("discriminator_")
            }
        allowed = with_fields(self.saved, model={**now, "encoder_norm": encoder_norm(self.saved.model)})
        check_same_networks(allowed, cfg, f"--init-from {self.what}")

    def say(self, cfg: TrainConfig) -> None:
        """Tell the user what is taken."""
        taken = ["generator"]
        if cfg.model.use_gan:
            has = bool(self.networks["discriminator"])
            taken.append(
                "discriminator" if has else "no discriminator (there is none: it starts from random weights)"
            )
        log.info(
            f"Starting from the weights of {self.what}: {', '.join(taken)}; optimizer, schedule and data are new"
        )
        if cfg.model.align != self.saved.model.align:
            log.info("  model.align: none -> plane; the channels that it adds start without effect")

    def load(self, part: str, network: nn.Module) -> None:
        """Copy a network's weights into it, if there are any; channels that are new stay as they are.

        Raises:
            UserError: tensors are missing or of another shape.
        """
        found = self.networks[part]
        if not found:
            return
        own = network.state_dict()
        new = {name for name in own if name.endswith(".extra") and name not in found}
        faults = mismatches({name: value for name, value in own.items() if name not in new}, found)
        if faults:
            raise UserError(f"--init-from {self.what}: {part} doesn't fit: {some(faults, 5)}")
        network.load_state_dict({name: found.get(name, value) for name, value in own.items()})
