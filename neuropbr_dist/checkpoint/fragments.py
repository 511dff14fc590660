"""Fragments: the pieces of the training state that one rank holds, and their copy in host memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from neuropbr_dist.fragment import Fragment

ALIGNMENT = 64
"""Bytes; staged pieces start at multiples of it."""
SLAB_BYTES = 256 * 2**20
"""Staging memory is allocated in slabs of this size: torch rounds page-locked blocks up to a power of two."""


Layouts = dict[str, tuple[torch.dtype, torch.Size]]
"""Tensor name to (dtype, global shape)."""


def layouts(fragments: Sequence[Fragment]) -> Layouts:
    """Return the tensors that a rank's fragments are pieces of.

    Raises:
        ValueError: pieces disagree about their tensor, or two begin at one place (a load would fill one only).
    """
    counts = Counter((f.name, f.start) for f in fragments if f.data.numel())
    if twice := [place for place, count in counts.items() if count > 1]:
        name, start = twice[0]
        raise ValueError(f"two fragments of this rank begin at element {start} of {name}")
    return merge_layouts({f.name: (f.data.dtype, f.shape)} for f in fragments)


def merge_layouts(parts: Iterable[Layouts]) -> Layouts:
    """Merge several tables into one. Raises ValueError if they disagree about a tensor."""
    merged: Layouts = {}
    for part in parts:
        for name, layout in part.items():
            if merged.setdefault(name, layout) != layout:
                raise ValueError(f"fragments disagree about {name}: {merged[name]} and {layout}")
    return merged


@dataclass
class StagedState:
    """A rank's fragments as copied to host memory; training may go on while they are written."""

    fragments: list[Fragment]

    def matches(self, fragments: Sequence[Fragment]) -> bool:
        """Return whether `fragments` fit into this memory piece by piece."""
        layout = [(f.name, f.start, f.data.shape, f.data.dtype) for f in fragments]
        return layout == [(f.name, f.start, f.data.shape, f.data.dtype) for f in self.fragments]


def stage(fragments: Sequence[Fragment], reuse: StagedState | None = None) -> StagedState:
    """Copy `fragments` to host memory: the only part of a save that holds training.

    The memory is page-locked if a fragment is on a CUDA device. `reuse` is the memory of an
    earlier save that is done; with the same layout no memory is allocated, which is most of the time.
    """
    fragments = list(fragments)
    layouts(fragments)  # a wrong list is refused here, not by the writer
    cuda_devices = {f.data.device for f in fragments if f.data.is_cuda}
    if reuse is None or not reuse.matches(fragments):
        reuse = reserve(fragments)
    for fragment, copy in zip(fragments, reuse.fragments, strict=True):
        copy.data.copy_(fragment.data.detach(), non_blocking=True)
    for device in cuda_devices:
        torch.cuda.synchronize(device)
    return reuse


def reserve(fragments: Sequence[Fragment]) -> StagedState:
    """Reserve host memory for `fragments`, nothing copied.

    Page-locked memory takes a second for 3 GB: too long in a save.
    """
    cuda_devices = {f.data.device for f in fragments if f.data.is_cuda}
    for device in cuda_devices:  # a thread begins on GPU 0, where this rank may have no business
        torch.cuda.set_device(device)
    host = _allocate(fragments, pinned=bool(cuda_devices))
    return StagedState([replace(f, data=memory) for f, memory in zip(fragments, host, strict=True)])


def share(fragments: Sequence[Fragment], rank: int, world: int) -> list[Fragment]:
    """Return the part, `1 / world` of the bytes, that `rank` saves of a list that all ranks hold alike.

    The shares of all ranks make up the list, without overlaps; tensors without elements are in all of them.
    """
    total = sum(f.data.nbytes for f in fragments)
    first, last = total * rank // world, total * (rank + 1) // world
    begin, found = 0, []
    for f in fragments:
        # An element belongs to the rank in whose range its first byte lies.
        size, count = f.data.element_size(), f.data.numel()
        low, high = (min(max(-(-(edge - begin) // size), 0), count) for edge in (first, last))
        if low < high or not count:
            found.append(replace(f, data=f.data[low:high], start=f.start + low))
        begin += f.data.nbytes
    return found


def _allocate(fragments: Sequence[Fragment], *, pinned: bool) -> list[torch.Tensor]:
    """Allocate one host tensor for each fragment, of its size and dtype, carved from few large slabs."""
    sizes = [-(-f.data.nbytes // ALIGNMENT) * ALIGNMENT for f in fragments]
    remaining = sum(sizes)
    slab, used = torch.empty(0, dtype=torch.uint8), 0
    host = []
    for fragment, size in zip(fragments, sizes, strict=True):
        if used + size > slab.numel():
            slab_bytes = max(size, min(SLAB_BYTES, remaining))
            slab, used = torch.empty(slab_bytes, dtype=torch.uint8, pin_memory=pinned), 0
        host.append(slab[used : used + fragment.data.nbytes].view(fragment.data.dtype))
        used += size
        remaining -= size
    return host
