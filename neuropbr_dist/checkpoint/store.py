"""Save and load: the canonical checkpoint of a run, the same for every engine and world size."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from neuropbr_dist.checkpoint.folders import (
    LATEST,
    find,
    free_name,
    next_serial,
    temporary_name,
    update_links,
)
from neuropbr_dist.checkpoint.fragments import Layouts, StagedState, layouts, merge_layouts, stage
from neuropbr_dist.checkpoint.lock import FileLock
from neuropbr_dist.checkpoint.manifest import (
    CONFIG,
    MANIFEST,
    STATE,
    TENSORS,
    FileRecord,
    Manifest,
    StoredTensor,
    plain_name,
    read_config,
    read_manifest,
    read_state,
    read_tensors,
    write_bytes,
    write_json,
    write_manifest,
    write_tensors,
)
from neuropbr_dist.checkpoint.planner import FragmentLoadPlanner, FragmentSavePlanner, as_state_dict
from neuropbr_dist.checkpoint.storage import ShardReader, ShardWriter
from neuropbr_dist.checkpoint.verify import verify
from neuropbr_dist.errors import UserError, some
from neuropbr_dist.files import sync
from neuropbr_dist.fragment import Fragment
from neuropbr_dist.ranks import all_gather_object, is_rank_0, joint_error, on_each_rank, on_rank_0, world_size

log = logging.getLogger(__name__)

# DCP says this on every save and load of a single process, which is an ordinary case here.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def save(
    folder: str | os.PathLike,
    name: str,
    fragments: Iterable[Fragment],
    state: dict[str, Any],
    config_yaml: str,
    *,
    links: Sequence[str] = (LATEST,),
    process_group: dist.ProcessGroup | None = None,
) -> Path:
    """Save a checkpoint and wait until it is on disk: `stage`, then `write`, in a folder made if missing. Collective."""
    on_rank_0(lambda: Path(folder).mkdir(parents=True, exist_ok=True), process_group)
    return write(
        stage(list(fragments)), folder, name, state, config_yaml, links=links, process_group=process_group
    )


def write(
    staged: StagedState,
    folder: str | os.PathLike,
    name: str,
    state: dict[str, Any],
    config_yaml: str,
    *,
    links: Sequence[str] = (LATEST,),
    process_group: dist.ProcessGroup | None = None,
) -> Path:
    """Write staged fragments as the checkpoint `folder/name`. Collective.

    Every rank writes its share into a temporary folder; the first rank adds state, config and
    manifest, flushes all to the device, and renames the folder. After that the names in `links` are
    pointed to it. On any failure nothing appears, and the temporary folder is removed.

    Args:
        folder: the run's; it is there.
        name: `step_name(step)`. If it is taken (a step saved again after going back), `-2` is appended.
        state: anything JSON can hold; the first rank's is saved. Keys come back as strings.
        links: names in `folder` for this save, e.g. `latest`, `best_model`, `checkpoint_epoch_0010`.
        process_group: all ranks if None. In a background thread: a gloo group of its own.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: on all ranks: some rank couldn't write (disk full, no permission, …).
        RuntimeError: on all ranks: the fragments don't make up whole tensors, or another fault of the program.
    """
    folder = Path(folder).absolute()

    def seal(made: Path, tensors: dict[str, StoredTensor], shards: dict[str, FileRecord]) -> Path:
        save_id = made.name.rpartition("-")[2]
        files = {
            **shards,
            TENSORS: write_tensors(made, save_id, tensors),
            STATE: write_json(made / STATE, state),
            CONFIG: write_bytes(made / CONFIG, config_yaml.encode()),
        }
        names = [plain_name(link) for link in links]
        write_manifest(made, Manifest(save_id, next_serial(folder), names, files))
        sync(made)
        final = free_name(folder, plain_name(name))
        made.rename(final)
        sealed.append(final)
        update_links(folder)
        sync(folder)  # a rename lasts only after this
        return final

    sealed: list[Path] = []
    writer = ShardWriter(folder, temporary_name(name), seal)
    try:
        metadata = dcp.save(
            as_state_dict(staged.fragments),
            storage_writer=writer,
            planner=FragmentSavePlanner(),
            process_group=process_group,
            no_dist=world_size(process_group) == 1,
        )
    except CheckpointException as failure:
        errors = {rank: error for rank, (error, _) in failure.failures.items()}
        what = (
            "was saved, but its names weren't made" if sealed else "was not saved, earlier ones are untouched"
        )
        raise joint_error(errors, f"checkpoint {folder / name} {what}: ") from failure
    finally:
        writer.remove_unfinished()
    return Path(metadata.storage_meta.checkpoint_id)


class Checkpoint:
    """An open checkpoint. While it is open no `retain` deletes it; close it, or use it in a `with`.

    Args:
        path: its folder, verified.
        hold: this process's shared lock on it, if any.
    """

    def __init__(self, path: Path, hold: FileLock | None = None) -> None:
        self.path = path
        self._hold = hold
        self.tensors: dict[str, StoredTensor] = read_tensors(path, read_manifest(path))
        """Every stored tensor by name, with `dtype` and `shape`."""
        self.state: dict[str, Any] = read_state(path)
        self.config_yaml: str = read_config(path)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._hold is not None:
            self._hold.release()

    def load(
        self,
        fragments: Iterable[Fragment],
        *,
        strict: bool = True,
        leave_out: str = "",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        """Fill `fragments` in place, each rank its own, however they cut the tensors. Collective.

        Floating-point tensors are converted to the fragment's dtype.

        Args:
            strict: the ranks must ask for every tensor of the checkpoint. Otherwise they may ask for
                some only, as an inference run does; what they ask for must be there in either case.
            leave_out: names that begin so needn't be asked for.

        Raises:
            UserError: on all ranks: tensors are missing, unexpected or of another shape or kind.
        """
        fragments = list(fragments)
        own = on_each_rank(lambda: layouts(fragments), process_group)
        wanted = merge_layouts(all_gather_object(own, process_group))
        self._check_match(wanted, strict, leave_out)
        try:
            dcp.load(
                as_state_dict(fragments),
                storage_reader=ShardReader(self.path, self.tensors),
                planner=FragmentLoadPlanner(),
                process_group=process_group,
                no_dist=world_size(process_group) == 1,
            )
        except CheckpointException as failure:
            errors = {rank: error for rank, (error, _) in failure.failures.items()}
            raise joint_error(errors, f"checkpoint {self.path} was not loaded: ") from failure

    def read(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return whole tensors on the CPU, in their shapes, of all names that begin with `prefix`. Not collective."""
        tensors = {
            name: torch.empty(stored.shape, dtype=stored.dtype)
            for name, stored in self.tensors.items()
            if name.startswith(prefix)
        }
        state_dict = as_state_dict(Fragment.whole(name, tensor) for name, tensor in tensors.items())
        dcp.load(
            state_dict,
            storage_reader=ShardReader(self.path, self.tensors),
            planner=FragmentLoadPlanner(),
            no_dist=True,
        )
        return tensors

    def _check_match(self, wanted: Layouts, strict: bool, leave_out: str) -> None:
        missing = [name for name in wanted if name not in self.tensors]
        extra = [name for name in self.tensors if name not in wanted] if strict else []
        unexpected = [name for name in extra if not (leave_out and name.startswith(leave_out))]
        differing = []
        for name, (dtype, shape) in wanted.items():
            stored = self.tensors.get(name)
            if stored is None:
                continue
            if stored.shape != shape:
                differing.append(f"{name} ({tuple(stored.shape)} there, {tuple(shape)} here)")
            elif stored.dtype != dtype and not (stored.dtype.is_floating_point and dtype.is_floating_point):
                differing.append(f"{name} ({stored.dtype} there, {dtype} here)")
        if not (missing or unexpected or differing):
            return
        details = [
            *differing,
            *(f"{name} (not in the checkpoint)" for name in missing),
            *(f"{name} (in the checkpoint only)" for name in unexpected),
        ]
        raise UserError(
            f"{self.path} is a checkpoint of another architecture: {len(missing)} tensors are not in it, "
            f"{len(unexpected)} are in it only, {len(differing)} differ in shape or kind: {some(details, 10)}"
        )


def open_newest(
    path: str | os.PathLike,
    *,
    usable: Callable[[Checkpoint], object] = lambda _checkpoint: None,
    process_group: dist.ProcessGroup | None = None,
) -> Checkpoint | None:
    """Verify and open the newest good checkpoint that `path` may mean (see `find`). Collective.

    Args:
        usable: called with each sound one, on every rank; a `UserError` that it raises counts as damage.

    Returns:
        None if there is no checkpoint at all.

    Raises:
        UserError: on all ranks: there are checkpoints but none is good, or the newest has another format version.
    """
    candidates = on_rank_0(lambda: find(path), process_group)
    damaged: list[str] = []
    for candidate in candidates:
        checkpoint, faults = _open_if_good(candidate, usable, process_group)
        if checkpoint is not None:
            if damaged and is_rank_0(process_group):
                log.warning(f"falling back to {candidate}")
            return checkpoint
        damaged.append(f"{candidate}: {some(faults, 5)}")
        if is_rank_0(process_group):
            log.warning(f"checkpoint is damaged: {damaged[-1]}")
    if damaged:
        raise UserError(f"no checkpoint in {path} is good: {'; '.join(damaged)}")
    return None


def _open_if_good(
    path: Path, usable: Callable[[Checkpoint], object], process_group: dist.ProcessGroup | None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the checkpoint, or its faults. Collective."""
    with ExitStack() as on_failure:
        # Before it is verified: a run may be deleting old saves just now.
        hold = on_each_rank(lambda: _hold(path), process_group)
        if hold is not None:
            on_failure.callback(hold.release)
        if faults := verify(path, process_group=process_group):
            return None, faults
        checkpoint = on_each_rank(lambda: Checkpoint(path, hold), process_group)
        fault = None
        try:
            usable(checkpoint)
        except UserError as error:
            fault = str(error)
        if faults := sorted(set(filter(None, all_gather_object(fault, process_group)))):
            return None, faults
        on_failure.pop_all()
        return checkpoint, []


def _hold(checkpoint: Path) -> FileLock | None:
    """Return a shared lock against deletion. None where none can be had: the manifest is gone, or is no file."""
    lock = FileLock(checkpoint / MANIFEST)
    try:
        lock.acquire(shared=True)
    except OSError:  # `verify` says what is wrong with it
        return None
    return lock
