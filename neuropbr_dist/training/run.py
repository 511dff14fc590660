"""A training run, from its configuration to its end: where, from which checkpoint, on what."""

from __future__ import annotations

import logging
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from neuropbr_dist.checkpoint import RunLock, check_folder, check_outside
from neuropbr_dist.cluster import (
    Environment,
    StopReason,
    allocation_end,
    check_alike,
    detect,
    last_resort,
    pick_device,
    process_group,
)
from neuropbr_dist.config import TrainConfig, resolve, with_fields, writable
from neuropbr_dist.config.values import fit_fields
from neuropbr_dist.data.open import Samples, fill_cache
from neuropbr_dist.logs import to_console
from neuropbr_dist.parallel.blocks import compiler_processes
from neuropbr_dist.ranks import all_gather_object, on_each_rank, on_rank_0
from neuropbr_dist.training.estimate import available_bytes
from neuropbr_dist.training.facts import describe_samples, facts
from neuropbr_dist.training.first_weights import FirstWeights, Weights
from neuropbr_dist.training.folder import TRACES, mark_requeue
from neuropbr_dist.training.loop import Trainer
from neuropbr_dist.training.networks import backbone_weights
from neuropbr_dist.training.resume import check_data_unchanged, fresh_or_resumed, run_folder
from neuropbr_dist.training.stages import StagedRun, check_stages, open_run, set_up_run
from neuropbr_dist.training.start import Start
from neuropbr_dist.training.timings import StartUp

log = logging.getLogger(__name__)


def train(cfg: TrainConfig, start: Start) -> StopReason | None:
    """Train to the end, or to a stop; return why it stopped, if it did. To be called on every rank.

    Args:
        cfg: a fresh run's; it stays as it is. A resumed one goes on with what it saved and `start.overrides`.

    Raises:
        UserError: what a person can mend, on every rank; nothing was trained, or all until here is saved.
    """
    start_up = StartUp()
    start_up.mark("imports")
    cfg, env = resolve(fit_fields(writable(cfg), "train")), detect()
    to_console(env.rank, outlive=True, default=True)
    device = pick_device(cfg.training.device, env)
    check_outside(Path(cfg.training.checkpoint_dir))
    with ExitStack() as stack:
        join = partial(process_group, env, timeout_minutes=cfg.training.timeout_minutes)
        if env.distributed:
            stack.enter_context(join(device, traces=Path(cfg.training.checkpoint_dir) / TRACES))
            start_up.mark("process group")
        folder = run_folder(cfg, start)
        lock = stack.enter_context(RunLock(folder))
        cfg, checkpoint = fresh_or_resumed(cfg, start)
        on_rank_0(partial(check_folder, folder))
        if checkpoint is not None:
            stack.enter_context(checkpoint)
            device = pick_device(cfg.training.device, env)
        first = None
        if checkpoint is None and start.init_from is not None:
            first = FirstWeights.read(Path(start.init_from))
            cfg = first.followed(cfg)
        start_up.mark("checkpoint found and verified" if checkpoint else "run folder")
        end = on_rank_0(allocation_end)
        stack.enter_context(last_resort(end, partial(mark_requeue, folder, str(StopReason.TIME_LIMIT))))
        torch.use_deterministic_algorithms(cfg.training.deterministic)
        check_stages(cfg, env.world_size)
        samples = open_run(cfg)
        describe_samples(cfg, samples)
        run, backbone = set_up_all(cfg, env, device, samples, fresh=checkpoint is None and first is None)
        if first is not None:
            first.check(run.cfg)
            first.say(run.cfg)
        stage = run.at(checkpoint.state["cursor"] if checkpoint else 0)
        if not env.distributed and stage.setup.needs_process_group:
            stack.enter_context(join(device, traces=folder / TRACES))
        check_alike(facts(run), socket.gethostname())
        if checkpoint is not None:
            check_data_unchanged(checkpoint, run, start.allow_data_change)
        to_come = run.stages[stage.number - 1 :]
        fill_cache([each.samples.source for each in to_come], env.local_world_size)
        start_up.mark("data set")
        if stage.setup.compile == "blocks":
            stack.enter_context(compiler_processes())
        trainer = Trainer(run, stage, backbone, first, start, start_up)
        if checkpoint is not None:
            trainer.go_on_from(checkpoint)
        return trainer.train(lock, end)


def set_up_all(
    cfg: TrainConfig, env: Environment, device: torch.device, samples: Samples, fresh: bool
) -> tuple[StagedRun, Weights | None]:
    """Return the set-up of all stages and, for a fresh run, the pretrained weights that it asks for and that can be had. Collective."""
    room = min(all_gather_object(available_bytes(device, env.local_world_size)))
    made = partial(set_up_run, env=env, device=device, samples=samples, room=room)
    run, backbone = on_each_rank(partial(made, cfg)), None
    model = run.cfg.model
    if fresh and model.encoder_pretrained:
        backbone = backbone_weights(model)
    if isinstance(backbone, str):
        kind = "group norm, " if model.encoder_norm == "auto" else ""
        log.info(
            f"No ImageNet weights for {model.encoder_backbone}: {backbone}. The encoder starts from random weights "
            f"({kind}model.encoder_pretrained = false silences this)"
        )
        run, backbone = made(with_fields(cfg, model={"encoder_pretrained": False})), None
    for stage in run.stages:
        if stage.setup.memory_why:
            which = f", stage {stage.number}" if cfg.training.stages else ""
            plan, why = stage.setup.memory, stage.setup.memory_why
            log.info(f"Memory plan{which}: {plan} ({why}; training.memory names another)")
    return run, backbone
