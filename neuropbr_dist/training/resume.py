"""Which folder a run writes to, whether it starts fresh or goes on, and what it must not change then."""

from __future__ import annotations

import logging
from pathlib import Path

from neuropbr_dist.checkpoint import Checkpoint, find, open_newest
from neuropbr_dist.config import TrainConfig, as_saved, from_yaml, refuse_other_networks, resolve, writable
from neuropbr_dist.config.deepspeed import is_name
from neuropbr_dist.config.values import differences
from neuropbr_dist.data.builtin.cache import refuse_unasked_cache
from neuropbr_dist.data.open import Samples
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.folder import refuse_held
from neuropbr_dist.training.start import Start
from neuropbr_dist.training.state import Progress

log = logging.getLogger(__name__)


def run_folder(cfg: TrainConfig, start: Start) -> Path:
    """The folder that this run writes to: as configured; `--resume PATH` alone means the checkpoint's."""
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
    """The configuration to run, and the checkpoint to go on from. Collective."""
    folder = run_folder(cfg, start)
    if start.init_from is not None and start.resume not in (None, "auto"):
        raise UserError(
            f"--init-from {start.init_from} with --resume {start.resume}: a run that goes on has its own weights; "
            "leave one out, or --resume auto, with which --init-from counts for the first start"
        )
    if start.resume is None:
        refuse_held(folder, start.overwrite)
        return cfg, None
    source = folder if start.resume == "auto" else Path(start.resume)
    checkpoint = open_newest(source, usable=lambda found: Progress.of(found.state))
    if checkpoint is None:
        log.info(f"No checkpoint in {folder}: starting fresh")
        return cfg, None
    if checkpoint.path.parent != folder.resolve():  # a branch of that run, in a folder of its own
        refuse_held(folder, start.overwrite)
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
    refuse_other_networks(saved, now, f"--resume {start.resume}")
    refuse_unasked(now, cfg, f"--resume {start.resume}")
    log.info(f"Resuming from {checkpoint.path} (step {checkpoint.state['step']})")
    if start.overrides.config:
        log.info(
            f"  --config {start.overrides.config}: a resumed run keeps its saved fields; change one by a flag or --set"
        )
    for name, (old, new) in differences(saved, now).items():
        log.info(f"  {name}: {old} -> {new} (command line)")
    return now, checkpoint


def refuse_unasked(now: TrainConfig, asked: TrainConfig, where: str) -> None:
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
    refuse_unasked_cache(cache, asked.data.builtin_cache, where)


def follow_engine_flags(cfg: TrainConfig, start: Start) -> None:
    """A new engine on resume leaves the old one's settings behind."""
    flags = start.overrides.flags
    engine, ds = flags.get("--engine"), flags.get("--ds")
    if engine not in (None, "auto", "deepspeed"):
        cfg.training.ds_config = cfg.training.ds_config_discriminator = None
    if ds or engine not in (None, "auto", "fsdp"):
        cfg.training.shard, cfg.training.cpu_offload = "world", False
    if ds and not engine:
        cfg.training.engine = "auto"


def check_data_unchanged(checkpoint: Checkpoint, cfg: TrainConfig, samples: Samples, allowed: bool) -> None:
    """Raises UserError on a resume with another data set or global batch, unless `allowed`."""
    state, changed = checkpoint.state, []
    seed = from_yaml(checkpoint.config_yaml, str(checkpoint.path / "config.yaml")).training.seed
    if seed != cfg.training.seed:
        changed.append(f"another order of samples (training.seed {cfg.training.seed}; saved: {seed})")
    if state["data"] != samples.fingerprint:
        changed.append(f"another data set ({samples.fingerprint}; saved: {state['data']})")
    if state["global_batch"] != cfg.training.global_batch_size:
        changed.append(f"global batch {cfg.training.global_batch_size} (saved: {state['global_batch']})")
    if changed and not allowed:
        raise UserError(
            f"--resume {checkpoint.path}: {' and '.join(changed)}; exactly-once sample order would be lost. "
            "Use the saved ones, or --allow-data-change"
        )
