"""DeepSpeed JSON files: found by name or path, `"auto"` values filled from the run, contradictions refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import neuropbr_dist
from neuropbr_dist.config.text import shown
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_json

PACKAGE = Path(neuropbr_dist.__file__).parent
FOLDERS = PACKAGE / "ds_configs", PACKAGE.parent / "ds_configs"
"""Folders of the files that come with the package: installed, and in a clone."""


def shipped() -> dict[str, Path]:
    """Return the files that come with the package, by name."""
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def is_name(given: str) -> bool:
    """Return whether `--ds` names a file that comes with the package: a bare word, no path and no suffix."""
    return given == Path(given).stem


def anywhere(given: str) -> str:
    """Return what `--ds` was given as a word that means the same in any folder: a name, or a whole path.

    Raises:
        UserError: a name that isn't one; lists those that are.
    """
    files = shipped()
    if is_name(given):
        if given not in files:
            raise UserError(
                f"--ds {given}: no such file; there are {', '.join(files)}, or a path of your own"
            )
        return given
    path = Path(given).absolute()
    ours = files.get(path.stem)
    return path.stem if ours is not None and path.exists() and path.samefile(ours) else str(path)


def file_of(given: str) -> Path:
    """Return the file that a name or a path means.

    Raises:
        UserError: a name that isn't one.
    """
    return shipped()[anywhere(given)] if is_name(given) else Path(given)


def read(given: str) -> dict[str, Any]:
    """Return the file's JSON object.

    Args:
        given: its name or path.

    Raises:
        UserError: missing, malformed or not an object, or a section that we read isn't one.
    """
    path = file_of(given)
    if not path.exists() and path.stem in shipped():
        raise UserError(f"--ds {path}: no such file; the one that comes with neuropbr is --ds {path.stem}")
    try:
        tree = read_json(path)
    except UserError as error:
        raise UserError(f"--ds {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(tree).__name__}")
    for section in ("zero_optimization", "bf16", "fp16"):
        if not isinstance(tree.get(section, {}), dict):
            raise UserError(f"{path}: {section} = {shown(tree[section])}; allowed: a JSON object")
    return tree


def resolve(
    given: str,
    *,
    global_batch: int,
    micro_batch: int,
    accumulation: int,
    world_size: int,
    clip: float | None,
    precision: str,
) -> dict[str, Any]:
    """Return the file as DeepSpeed gets it.

    Args:
        given: name or path of a JSON file in DeepSpeed's own format.
        global_batch: samples per step, `training.global_batch_size`.
        micro_batch, accumulation, world_size: how the batch is cut.
        clip: `training.grad_clip_norm`.
        precision: resolved `training.precision`: bf16, fp16 or fp32.

    Raises:
        UserError: a value contradicts the run's configuration, or `"auto"`
            stands where nothing fills it.
    """
    tree, path = read(given), str(file_of(given))
    check_sections(tree, path)
    stage = tree.setdefault("zero_optimization", {}).setdefault("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage = {shown(stage)}; allowed: 0, 1, 2, 3")
    if stage == 0 and precision != "fp32":
        raise UserError(
            f"{path}: zero_optimization.stage = 0 with training.precision = {precision}: DeepSpeed's updates "
            "are numerically off there (measured); use --engine ddp, stage 1 or more, or precision fp32"
        )
    if stage == 3:
        # DeepSpeed's own linear layer loses the gradient of its input in compiled code: on a GPU no gradient
        # went through attention, without a word (measured). Segments are gathered whole, and need none of it.
        zero = tree["zero_optimization"]
        fill(zero, path, "memory_efficient_linear", False, "torch.compile", "zero_optimization.")
    fill(tree, path, "train_batch_size", global_batch, "training.global_batch_size")
    fill(tree, path, "train_micro_batch_size_per_gpu", micro_batch, "training.batch_size")
    fill(tree, path, "gradient_accumulation_steps", accumulation, "training.batch_size")
    fill(tree, path, "gradient_clipping", clip or 0.0, "training.grad_clip_norm")
    for name in ("bf16", "fp16"):
        fill(tree.setdefault(name, {}), path, "enabled", precision == name, "training.precision", f"{name}.")
    check_auto_filled(tree, path)
    # DeepSpeed wants batch = micro x accumulation x world; ranks that are short
    # run zero-weight samples, so its batch counts those too.
    tree["train_batch_size"] = micro_batch * accumulation * world_size
    # torch's AdamW on host memory is right; DeepSpeed's own would be compiled with g++ (83 s).
    tree.setdefault("zero_force_ds_cpu_optimizer", False)
    return tree


def fill(tree: dict[str, Any], path: str, key: str, value: Any, field: str, prefix: str = "") -> None:
    """Fill an absent or `"auto"` value; anything else must equal the run's."""
    given = tree.get(key, "auto")
    if given == "auto":
        tree[key] = value
    elif given != value:
        raise UserError(
            f"{path}: {prefix}{key} = {shown(given)} contradicts the run's {field}, which makes it {value!r}; "
            f'change one of them, or write "auto" in the file'
        )


def check_sections(tree: dict[str, Any], path: str) -> None:
    """Raise a UserError for sections that would set what the run's own configuration sets."""
    for section, instead in (
        ("optimizer", "optimizer.g_lr and the like"),
        ("scheduler", "optimizer.scheduler"),
    ):
        if section in tree:
            raise UserError(
                f"{path}: has a section {section!r}, but the run's configuration sets it ({instead}); "
                "remove it from the file"
            )


def check_auto_filled(tree: Any, path: str, name: str = "") -> None:
    """Raise a UserError for an `"auto"` that nothing has filled; `name` is where `tree` stands in the file."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            check_auto_filled(value, path, f"{name}.{key}" if name else key)
    elif tree == "auto":
        raise UserError(f'{path}: {name} = "auto", but nothing fills it; write a value or remove it')
