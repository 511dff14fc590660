"""Planning with torch.distributed.checkpoint (DCP): which rank writes what, who reads which bytes.

To DCP every tensor is flat and one-dimensional, and a fragment is a chunk of it. DCP's
planners then drop replicas, spread them over the ranks, and find what overlaps on a load
that cuts tensors in another way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from neuropbr_dist.checkpoint.fragments import merge_layouts
from neuropbr_dist.fragment import Fragment


class FlatPieces:
    """A rank's pieces of one tensor, in the form that DCP's planners ask for."""

    def __init__(self, pieces: list[Fragment]) -> None:
        self.layout = (pieces[0].data.dtype, pieces[0].shape)
        self._by_start = {piece.start: piece.data for piece in pieces}

    def at(self, index: MetadataIndex) -> torch.Tensor:
        assert index.offset is not None
        return self._by_start[index.offset[0]]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=torch.Size([start]), sizes=data.shape)
            for start, data in self._by_start.items()
        ]

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        dtype, shape = self.layout
        properties, size = TensorProperties(dtype=dtype), torch.Size([shape.numel()])
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=size),
            )
            for chunk in self.__create_chunk_list__()
        ]


def as_state_dict(fragments: Iterable[Fragment]) -> dict[str, FlatPieces]:
    """Return fragments by name. Empty ones are dropped, unless the whole tensor is empty."""
    by_name: dict[str, list[Fragment]] = {}
    for fragment in fragments:
        if fragment.data.numel() or not fragment.shape.numel():
            by_name.setdefault(fragment.name, []).append(fragment)
    return {name: FlatPieces(pieces) for name, pieces in by_name.items()}


class FragmentSavePlanner(DefaultSavePlanner):
    """DCP's save planner over `FlatPieces`; true dtypes and shapes travel as planner data."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def create_local_plan(self) -> SavePlan:
        layouts = {name: pieces.layout for name, pieces in self.state_dict.items()}
        return replace(super().create_local_plan(), planner_data=layouts)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, metadata = super().create_global_plan(all_plans)
        metadata.planner_data = merge_layouts(plan.planner_data for plan in all_plans)
        return plans, metadata

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].at(index)


class FragmentLoadPlanner(DefaultLoadPlanner):
    """DCP's load planner over `FlatPieces`. Names and shapes were compared before."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].at(index)
