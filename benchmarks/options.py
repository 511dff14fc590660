"""The command line of a measurement: its own flags, and the fields of a run as `neuropbr train` has them.

A field means the same here as there. One that a measurement sets itself is refused, and so is one that a flag
of its own contradicts; none is dropped in silence.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from neuropbr_dist.commands.flags import add_debug, add_fields, new_parser, overrides_of
from neuropbr_dist.config import TrainConfig
from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.errors import UserError

RANDOM_TENSORS = dict.fromkeys(
    (
        "data.packed_dir", "data.input_dir", "data.output_dir", "data.metadata_path", "data.materials_dir",
        "data.environments_dir",
    ),
    "random tensors are measured; on a packed set: launch/benchmark.py scaling --worlds 1 --engines single --data DIR",
)  # fmt: skip
"""Fields of no effect where nothing is read."""
STEP = RANDOM_TENSORS | {
    "training.global_batch_size": "a measured step is one micro-batch a rank; training.batch_size says how many samples"
}
"""Fields of no effect in a single step."""
ENGINE = dict.fromkeys(
    ("training.engine", "training.ds_config", "training.shard"), "--engines names it, for each row"
)
"""Fields that a table of engines sets."""


def measurement(
    description: str | None, prog: str | None, config: str | None = "guide"
) -> argparse.ArgumentParser:
    """Return a parser that takes the fields of a run.

    Args:
        config: that is measured where none is named; None: as `neuropbr train` has it. The guide's step is what all
            dated results hold, and upstream's.
    """
    p = new_parser(description or "", prog)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    add_debug(p)
    add_fields(p.add_argument_group("the run, in the words of neuropbr train"))
    p.set_defaults(config=config)
    return p


def add_size(parser: argparse.ArgumentParser, default: int) -> None:
    """Add the short form of `--set data.image_size=PX`."""
    parser.add_argument(
        "--size", type=int, metavar="PX", help=f"short for --set data.image_size=PX; default {default}"
    )


def fields_of(args: argparse.Namespace, refused: Mapping[str, str], size: int | None = None) -> Overrides:
    """Return what the parsed arguments say of the run's fields, `--size` among them.

    Args:
        args: of a parser that `measurement` made.
        refused: fields that may not be named, each with why, or with how to say it.
        size: the pictures' side where neither the words nor a named configuration has one.

    Raises:
        UserError: such a field, or `--size` beside another `data.image_size`.
    """
    found = overrides_of(args)
    named = found.named()
    for field, why in refused.items():
        if field in named:
            raise UserError(f"{named[field]}: {why}")
    if getattr(args, "size", None) is not None:
        found = found.with_size(args.size)
    configured = found.configuration().data.image_size
    return found if configured or size is None else found.with_field("data.image_size", size)


def plans_of(cfg: TrainConfig, given: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    """Return the memory plans to measure: those given, else `training.memory`, else the default.

    Raises:
        UserError: others are given than the configuration's.
    """
    memory = cfg.training.memory
    if memory == "auto":
        return list(given or default)
    if given and list(given) != [memory]:
        raise UserError(f"memory plan {', '.join(given)}, but training.memory = {memory}; leave one out")
    return [memory]
