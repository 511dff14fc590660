"""Start and end of torch.distributed, and the check that ranks agree."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from neuropbr_dist.cluster.environment import Environment
from neuropbr_dist.errors import UserError
from neuropbr_dist.ranks import all_gather_object


def pick_device(preference: str, env: Environment) -> torch.device:
    """Return `training.device` for this rank. `auto`: CUDA, then MPS, then CPU. A GPU's segments grow from now on.

    Raises:
        UserError: a named device that isn't there.
    """
    device = chosen_device(preference, env)
    if device.type == "cuda":
        expand_segments()
    return device


def chosen_device(preference: str, env: Environment) -> torch.device:
    """Return the device that `pick_device` picks, and change nothing. Raises a UserError as that does."""
    if preference == "auto":
        if torch.cuda.is_available():
            return rank_gpu(env)
        mps = torch.backends.mps.is_available() and env.world_size == 1
        return torch.device("mps" if mps else "cpu")
    try:
        device = torch.device(preference)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cuda", "mps", "cpu"):
        raise UserError(f"training.device = {preference!r}; allowed: auto, cuda, cuda:N, mps, cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"training.device = {preference}: no CUDA device here (torch {torch.__version__}, "
            f"built for CUDA {torch.version.cuda}); check the driver, or use --device cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("training.device = mps: not available here; use --device cpu")
    if device.type == "cuda" and device.index is None:
        return rank_gpu(env)
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise UserError(
            f"training.device = {preference}: this machine has {torch.cuda.device_count()} GPU(s)"
        )
    if device.index is not None and env.world_size > 1:
        raise UserError(
            f"training.device = {preference} with {env.world_size} ranks; use cuda: ranks pick their own"
        )
    return device


def rank_gpu(env: Environment) -> torch.device:
    """Return this rank's GPU.

    Raises:
        UserError: the node has more ranks than GPUs.
    """
    visible = torch.cuda.device_count()
    # Slurm may show each task its own GPU only.
    index = 0 if visible == 1 else env.local_rank
    if index >= visible or (visible == 1 and env.local_world_size > 1 and env.launcher != "slurm"):
        raise UserError(
            f"{env.local_world_size} ranks on this node, but {visible} GPU(s); start as many ranks as GPUs"
        )
    return torch.device("cuda", index)


def expand_segments() -> None:
    """Let the GPU allocator's segments grow, where it would take a new one for a size that none has free.

    Fixed ones leave holes: the plan for 16 GB cards took 14.0 GiB and reserved 18 (`benchmarks/`). What a
    person has set for the allocator stays.
    """
    given = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", os.environ.get("PYTORCH_ALLOC_CONF", ""))
    if "expandable_segments" not in given:
        # Settings that aren't repeated fall back to torch's defaults.
        settings = ",".join(filter(None, [given, "expandable_segments:True"]))
        # Works at any time, as the variables don't; in torch since 2.10.
        torch._C._accelerator_setAllocatorSettings(settings)


RECORDED_COLLECTIVES = 2000
SAY_AFTER_S = 5.0
OTHERS_SAY_AFTER_S = 30.0
"""Ranks beside the first say later that they wait: there may be a thousand of them."""
REMEDY = (
    "is the port free (MASTER_PORT names another), the address right (MASTER_ADDR), and every rank started?"
)
GIVE_UP_S = 15.0
"""Time beyond the limit in which torch should have ended a wait: it waits on for an answer of whatever else listens at
the port."""


@contextmanager
def process_group(
    env: Environment, device: torch.device, timeout_minutes: float, traces: Path | None = None
) -> Iterator[None]:
    """Hold torch.distributed for the run. CPU tensors go through gloo also on GPU machines.

    Args:
        traces: folder for NCCL's flight recorder; each rank's last collectives go there when one times out.
    """
    env.export(os.environ)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if traces is not None:
            record_collectives(os.environ, traces)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"timeout": timedelta(minutes=timeout_minutes)}
    if env.world_size == 1:  # no rendezvous, and no port
        options["store"] = dist.HashStore()
    if device.type == "cuda":
        options["device_id"] = device
    with said_to_wait(env, timeout_minutes):
        dist.init_process_group(backend, rank=env.rank, world_size=env.world_size, **options)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def said_to_wait(env: Environment, timeout_minutes: float) -> Iterator[None]:
    """Say what is waited for in here, if it takes a while, and let Ctrl-C end it, which Python alone wouldn't.

    A wait for ranks that nobody has started looks like any other: in the shell of `srun --pty`, say. Errors become
    `UserError`s: a port that is taken, an address that isn't there, ranks that never come. A wait that torch doesn't
    end at its limit ends this process.
    """
    others = f"rank {env.rank} of {env.world_size} ({env.launcher})"
    place = f"{env.master_addr}:{env.master_port}"
    hint = (
        "; in a shell of srun, start ranks by srun, or unset SLURM_STEP_ID for one"
        if env.launcher == "slurm"
        else ""
    )
    message = (
        f"{others} waits for the others at {place}, up to {timeout_minutes:g} minutes; Ctrl-C ends it{hint}"
    )
    apart = f"{others} can't meet the others at {place}"
    timer = threading.Timer(SAY_AFTER_S if env.rank == 0 else OTHERS_SAY_AFTER_S, _say, (message,))
    gone = f"{apart}: no answer for {timeout_minutes:g} minutes; {REMEDY}"
    last = threading.Timer(60 * timeout_minutes + GIVE_UP_S, _give_up, (gone, env.rank))
    timer.daemon = last.daemon = True
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_DFL) if main and env.distributed else None
    timer.start()
    last.start()
    try:
        yield
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{apart}: {said}; {REMEDY}") from error
    finally:
        timer.cancel()
        last.cancel()
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _give_up(message: str, rank: int) -> None:
    """End as a `UserError` does, from beside a thread that nothing reaches."""
    _say(f"error: {message}" if rank == 0 else f"rank {rank}: error: {message}")
    os._exit(2)


def record_collectives(env: MutableMapping[str, str], folder: Path) -> None:
    """Turn on torch's flight recorder, under its names of torch 2.11 to 2.14; what a person has set stays."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = str((folder / "rank_").absolute())
    for name, value in (
        ("TORCH_FR_BUFFER_SIZE", str(RECORDED_COLLECTIVES)),
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", str(RECORDED_COLLECTIVES)),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
        ("TORCH_FR_DUMP_TEMP_FILE", prefix),
        ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", prefix),
    ):
        env.setdefault(name, value)


def check_alike(facts: dict[str, str], host: str) -> None:
    """Stop the run if a rank's `facts` (hashes of code, config, data set) differ from rank 0's."""
    facts_of_ranks = all_gather_object((host, facts))
    reference = facts_of_ranks[0][1]
    for rank, (where, found) in enumerate(facts_of_ranks):
        differing = [key for key in reference if found.get(key) != reference[key]]
        if differing:
            key = differing[0]
            raise UserError(
                f"rank {rank} on {where} has another {', '.join(differing)} than rank 0 "
                f"({key}: {found.get(key)} there, {reference[key]} on rank 0)"
            )
