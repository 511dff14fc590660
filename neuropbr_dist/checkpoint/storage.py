"""Raw shard files as a storage layer of torch.distributed.checkpoint."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from neuropbr_dist.checkpoint.manifest import FileRecord, Piece, StoredTensor

THREADS = 4
"""Files that a rank writes, reads or hashes at a time; hashing and file calls release the GIL."""
FILE_BYTES = 256 * 2**20
"""A rank begins a new shard file when one has grown past this, so that threads have files to share."""

Seal = Callable[[Path, dict[str, StoredTensor], dict[str, FileRecord]], Path]


@dataclass(frozen=True)
class Written:
    """Place of a piece that was written, with the record of its file."""

    piece: Piece
    record: FileRecord


class ShardWriter(StorageWriter):
    """Writes each rank's share of the plan into a temporary folder that the first rank makes, then seals.

    Args:
        folder: where the checkpoint is going to appear.
        temporary: name of the temporary folder in it; the first rank's counts.
        seal: called on the first rank after all ranks have written, with the temporary folder,
            the tensors, and the shard files' records; returns the final path. DCP raises its error
            on all ranks.
    """

    def __init__(self, folder: Path, temporary: str, seal: Seal) -> None:
        self.folder, self.temporary, self.seal = folder, temporary, seal
        self.made: Path | None = None

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.made = self.folder / self.temporary
        self.made.mkdir()  # never its parents: a run's folder that was moved away isn't made anew
        return [replace(plan, storage_data=(self.made.name, rank)) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        folder_name, rank = plan.storage_data
        files = [
            (self.folder / folder_name / f"shard_{rank:05d}_{number:03d}.bin", items)
            for number, items in enumerate(_batches(plan.items))
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            results = list(pool.map(lambda file: _write_shard(file[0], file[1], planner), files))
        return _done([result for shard in results for result in shard])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        assert self.made is not None
        written = [(result.index.fqn, result.storage_data) for rank in results for result in rank]
        records = {where.piece.file: where.record for _, where in written}
        pieces: dict[str, list[Piece]] = {}
        for name, where in sorted(written, key=lambda entry: entry[1].piece.start):
            pieces.setdefault(name, []).append(where.piece)
        tensors = {
            name: StoredTensor(dtype, shape, pieces[name])
            for name, (dtype, shape) in metadata.planner_data.items()
        }
        final = self.seal(self.made, tensors, records)
        metadata.storage_meta = StorageMeta(checkpoint_id=final)  # DCP hands the metadata to all ranks

    def remove_unfinished(self) -> None:
        """Delete what a failed save left behind; on the first rank, others made nothing."""
        if self.made is not None:
            shutil.rmtree(self.made, ignore_errors=True)


class ShardReader(StorageReader):
    """Reads pieces straight into the tensors that they belong to.

    Args:
        folder: the checkpoint, its files verified.
        tensors: what `tensors.json` says.
    """

    def __init__(self, folder: Path, tensors: dict[str, StoredTensor]) -> None:
        self.folder, self.tensors = folder, tensors
        self.pieces = {
            MetadataIndex(name, [piece.start]): piece
            for name, tensor in tensors.items()
            for piece in tensor.pieces
        }

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        pass

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True

    def read_metadata(self) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    properties=TensorProperties(dtype=tensor.dtype),
                    size=torch.Size([tensor.shape.numel()]),
                    chunks=[
                        ChunkStorageMetadata(torch.Size([piece.start]), torch.Size([piece.numel]))
                        for piece in tensor.pieces
                    ],
                )
                for name, tensor in self.tensors.items()
            }
        )

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.pieces[item.storage_index].file, []).append(item)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda entry: self._read_shard(entry[0], entry[1], planner), by_file.items()))
        return _done(None)

    def _read_shard(self, name: str, items: list[ReadItem], planner: LoadPlanner) -> None:
        with open(self.folder / name, "rb", buffering=0) as file:
            for item in items:
                target = planner.resolve_tensor(item).detach()
                stored = self.tensors[item.storage_index.fqn].dtype
                direct = target.device.type == "cpu" and target.dtype == stored and target.is_contiguous()
                host = target if direct else torch.empty(target.shape, dtype=stored)
                file.seek(self.pieces[item.storage_index].offset + item.storage_offsets[0] * stored.itemsize)
                _read_into(file, host)
                if not direct:
                    target.copy_(host)


def _batches(items: list[WriteItem]) -> list[list[WriteItem]]:
    """Cut a rank's items into files of about FILE_BYTES, in order."""
    batches: list[list[WriteItem]] = []
    filled = FILE_BYTES
    for item in items:
        if filled >= FILE_BYTES:
            batches.append([])
            filled = 0
        batches[-1].append(item)
        filled += item.tensor_storage_size() or 0
    return batches


def _write_shard(path: Path, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
    """Write one file and hash it on the way; flushed to the device."""
    digest = hashlib.sha256()
    pieces: list[tuple[MetadataIndex, Piece]] = []
    offset = 0
    with open(path, "wb", buffering=0) as file:
        for item in items:
            assert item.index.offset is not None
            tensor = planner.resolve_data(item).cpu().contiguous()  # type: ignore[union-attr]
            content = _bytes_of(tensor)
            digest.update(content)
            _write_all(file, content)
            pieces.append((item.index, Piece(item.index.offset[0], tensor.numel(), path.name, offset)))
            offset += len(content)
        os.fsync(file.fileno())
    record = FileRecord(offset, digest.hexdigest())
    return [
        WriteResult(index=index, size_in_bytes=0, storage_data=Written(piece, record))
        for index, piece in pieces
    ]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data


def _write_all(file: Any, content: memoryview) -> None:
    while len(content):  # one call writes at most 2 GiB
        content = content[file.write(content) :]


def _read_into(file: Any, tensor: torch.Tensor) -> None:
    content = _bytes_of(tensor)
    while len(content):
        count = file.readinto(content)
        if not count:
            raise OSError(f"{file.name}: ends early")
        content = content[count:]


def _done(value: Any) -> Future:
    future: Future = Future()
    future.set_result(value)
    return future
