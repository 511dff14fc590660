"""Which folder a run writes to, whether it starts fresh or goes on, and what it must not change then."""

from __future__ import annotations

import logging
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path

from neuropbr_dist.checkpoint import Checkpoint, find, open_newest
from neuropbr_dist.config import (
    Stage,
    TrainConfig,
    as_saved,
    check_same_networks,
    from_yaml,
    resolve,
    stages_of,
    writable,
)
from neuropbr_dist.config.deepspeed import is_name
from neuropbr_dist.config.values import differences
from neuropbr_dist.data.builtin.cache import check_cache_asked
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import realpath
from neuropbr_dist.training.folder import check_unused
from neuropbr_dist.training.stages import StagedRun
from neuropbr_dist.training.start import Start
from neuropbr_dist.training.state import Progress

log = logging.getLogger(__name__)


def run_folder(cfg: TrainConfig, start: Start) -> Path:
    """Return the folder that this run writes to: as configured; `--resume PATH` alone means the checkpoint's."""
    configured = Path(cfg.training.checkpoint_dir)
    if start.resume in (None, "auto"):
        return configured
    path = Path(start.resume)
    found = find(path)
    if not found:
        missing = "no checkpoint there" if path.exists() else "no such checkpoint or folder"
        raise UserError(f"--resume {path}: {missing}")
    return configured if "--checkpoint-dir" in start.overrides.flags else found[0].parent


def fresh_or_resumed(cfg: TrainConfig, start: Start) -> tuple[TrainConfig, Checkpoint | None]:
    """Return the configuration to run, and the checkpoint to go on from. Collective."""
    folder = run_folder(cfg, start)
    if start.init_from is not None and start.resume not in (None, "auto"):
        raise UserError(
            f"--init-from {start.init_from} with --resume {start.resume}: a run that goes on has its own weights; "
            "leave one out, or --resume auto, with which --init-from counts for the first start"
        )
    if start.resume is None:
        check_unused(folder, start.overwrite)
        return cfg, None
    source = folder if start.resume == "auto" else Path(start.resume)
    checkpoint = open_newest(source, usable=lambda found: Progress.of(found.state))
    if checkpoint is None:
        log.info(f"No checkpoint in {folder}: starting fresh")
        return cfg, None
    if checkpoint.path.parent != realpath(folder):  # a branch of that run, in a folder of its own
        check_unused(folder, start.overwrite)
    elif start.overwrite:
        raise UserError(f"--overwrite would delete what --resume {start.resume} goes on from; leave one out")
    saved = as_saved(from_yaml(checkpoint.config_yaml, str(checkpoint.path / "config.yaml")))
    saved.training.checkpoint_dir = str(folder)
    now = writable(saved)
    follow_engine_flags(now, start)
    start.overrides.apply(now)
    now = resolve(now)
    if Path(now.training.checkpoint_dir) != folder:
        raise UserError(
            f"--set training.checkpoint_dir={now.training.checkpoint_dir} with --resume {start.resume}: "
            "name the folder by --checkpoint-dir"
        )
    check_same_networks(saved, now, f"--resume {start.resume}")
    check_asked(now, cfg, f"--resume {start.resume}")
    log.info(f"Resuming from {checkpoint.path} (step {checkpoint.state['step']})")
    if start.overrides.config:
        log.info(
            f"  --config {start.overrides.config}: a resumed run keeps its saved fields; change one by a flag or --set"
        )
    for name, (old, new) in differences(saved, now).items():
        log.info(f"  {name}: {old} -> {new} (command line)")
    return now, checkpoint


def check_asked(now: TrainConfig, asked: TrainConfig, where: str) -> None:
    """Raise a UserError for a saved file or folder that this command line has to name again: it may be a stranger's.

    A module runs code, a DeepSpeed file names places to write to, and a cache is written to. What the run only reads
    as pictures is taken as it was saved.

    Args:
        asked: what this command line alone means.
    """
    module, cache = now.loss.custom_module, now.data.builtin_cache
    if module not in (None, asked.loss.custom_module):
        raise UserError(
            f"{where}: the saved run has loss.custom_module = {module}, whose code would run; if you trust it, say so: "
            f"--set loss.custom_module={module} (or --set loss.custom_module=null --set loss.custom={{}})"
        )
    for file, wanted, flag in (
        (now.training.ds_config, asked.training.ds_config, "--ds"),
        (now.training.ds_config_discriminator, asked.training.ds_config_discriminator, "--ds-discriminator"),
    ):
        if file is not None and file != wanted and not is_name(file):
            raise UserError(
                f"{where}: the saved run has a DeepSpeed file; if it is to be read: {flag} {file}"
            )
    check_cache_asked(cache, asked.data.builtin_cache, where)


def follow_engine_flags(cfg: TrainConfig, start: Start) -> None:
    """Leave the old engine's settings behind where a resume has a new one."""
    flags = start.overrides.flags
    engine, ds = flags.get("--engine"), flags.get("--ds")
    if engine not in (None, "auto", "deepspeed"):
        cfg.training.ds_config = cfg.training.ds_config_discriminator = None
    if ds or engine not in (None, "auto", "fsdp"):
        cfg.training.shard, cfg.training.cpu_offload = "world", False
    if ds and not engine:
        cfg.training.engine = "auto"


def check_data_unchanged(checkpoint: Checkpoint, run: StagedRun, allowed: bool) -> None:
    """Raise a UserError on a resume with other samples, another order or other batches, unless `allowed`.

    Nor may a stage that has ended be another one now; that is never allowed.
    """
    state, cfg, changed = checkpoint.state, run.cfg, []
    where = f"--resume {checkpoint.path}"
    saved = from_yaml(checkpoint.config_yaml, str(checkpoint.path / "config.yaml"))
    if saved.training.seed != cfg.training.seed:
        changed.append(
            f"another order of samples (training.seed {cfg.training.seed}; saved: {saved.training.seed})"
        )
    if state["data"] != run.fingerprint:
        changed.append(f"another data set ({run.fingerprint}; saved: {state['data']})")
    changed += changed_stages(saved, run, state["cursor"], where)
    if changed and not allowed:
        raise UserError(
            f"{where}: {' and '.join(changed)}; exactly-once sample order would be lost. "
            "Use the saved ones, or --allow-data-change"
        )


def changed_stages(saved: TrainConfig, run: StagedRun, cursor: int, where: str) -> list[str]:
    """Return what is other in the stage that the saved run is in: what a step takes. Later stages are free.

    Raises:
        UserError: a stage that has ended is another one now, or the one it is in would have ended before.
    """
    n, ends = run.stages[0].order.n, 0
    several = bool(saved.training.stages or run.cfg.training.stages)
    for number, (old, new) in enumerate(zip_longest(stages_of(saved), stages_of(run.cfg)), 1):
        begins, ends = ends, old.until_epoch * n if old else ends
        which = f"{where}: stage {number} of training.stages has"
        if old is None or begins >= cursor:
            break
        if ends < cursor:
            if new != old:
                raise UserError(
                    f"{which} ended (epoch {old.until_epoch}) and can't be changed: {difference(old, new)}"
                )
        elif several and (new is None or new.until_epoch * n < cursor):
            raise UserError(
                f"{which} come to epoch {-(-cursor // n)} and can't end before: {difference(old, new)}"
            )
        elif new is not None:
            return changed_steps(old, new, number, f"stage {number}'s " if several else "")
    return []


def changed_steps(old: Stage, new: Stage, number: int, which: str) -> list[str]:
    """Return what a step takes otherwise in a stage that is under way, for a person."""
    changed = []
    if new.global_batch_size != old.global_batch_size:
        changed.append(f"{which}global batch {new.global_batch_size} (saved: {old.global_batch_size})")
    if number > 1 and new.image_size != old.image_size:  # the first one's is in the data set's fingerprint
        changed.append(f"{which}image_size {new.image_size} (saved: {old.image_size})")
    return changed


def difference(old: Stage, new: Stage | None) -> str:
    """Return the fields in which two stages differ, for a person."""
    if new is None:
        return "it is gone"
    before, after = asdict(old), asdict(new)
    return ", ".join(f"{k} = {after[k]} (saved: {before[k]})" for k in after if after[k] != before[k])
