"""Slots -> a micro-batch: samples loaded straight into the memory that it goes to the device from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.augment import Augmentation
from neuropbr_dist.data.batch import Bands, MicroBatch, Mixture, Rendering
from neuropbr_dist.data.keyed import uniforms
from neuropbr_dist.data.order import Slot
from neuropbr_dist.data.rendered.changes import MASK, WAVES, mask, unchanged
from neuropbr_dist.data.rendered.draws import partner
from neuropbr_dist.data.rendered.source import RenderedEntry, RenderedSource
from neuropbr_dist.data.sources import Entry, Source
from neuropbr_dist.data.windows import load_windows, window_of, windows_seen
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.relighting import relighting

MORE_SHARED = "give the container more shared memory (docker run --shm-size=16g), or set data.num_workers = 0"


def load_batch(
    source: Source,
    entries: Sequence[Entry],
    slots: Sequence[Slot],
    augmentation: Augmentation | None = None,
    alignment: Alignment | None = None,
    relight: int | None = None,
    rows: tuple[int, int] | None = None,
) -> MicroBatch:
    """Load samples straight into the batch's own memory, which a worker process shares with its parent.

    Args:
        augmentation: how training samples are changed; None: samples stay as they are, and what is rendered shows
            the same scene in every epoch.
        alignment: which cameras go along; None: none do, and views stay as they are.
        relight: key of what the rendering loss looks at; None: there is none.
        rows: of the samples as the device shows them, which it is to give; no more is read than they need. None: all.

    Raises:
        UserError: a file can't be read, or holds what it may not.
    """
    if isinstance(source, RenderedSource):
        batch = load_rendered(source, entries, slots, augmentation, alignment)  # type: ignore[arg-type]
        batch = batch._replace(rows=rows)  # any part of a material may be seen in one of them
    else:
        batch = load_stored(source, entries, slots, augmentation, alignment, rows)
        if augmentation and augmentation.mixtures:
            batch = batch._replace(
                mixture=load_mixture(source, entries, slots, augmentation, alignment, rows)
            )
    if relight is None:
        return batch
    draws_of = [
        uniforms(f"{relight} {s.epoch} {key} lamps") for s, key in zip(slots, batch.keys, strict=True)
    ]
    return batch._replace(relighting=relighting(draws_of))


def load_stored(
    source: Source,
    entries: Sequence[Entry],
    slots: Sequence[Slot],
    augmentation: Augmentation | None,
    alignment: Alignment | None,
    rows: tuple[int, int] | None,
) -> MicroBatch:
    """Load views and maps, as they are stored; of both what the device needs to give `rows`."""
    count, side = len(slots), source.size
    chosen = [entries[slot.index] for slot in slots]
    pairs = list(zip(slots, chosen, strict=True))
    turns = [augmentation.orientation(s.epoch, e.key) for s, e in pairs] if augmentation else []
    cameras = [alignment.of(source.cameras(e), s.epoch, e.key) for s, e in pairs] if alignment else None
    of_maps = [window_of(rows or (0, side), side, turn) for turn in turns or [0] * count]
    if rows is None or cameras is None:
        of_views = [[window] * 3 for window in of_maps]
    else:
        of_views = [windows_seen(*one, side) for one in zip(cameras, of_maps, strict=True)]
    sizes = [sum(3 * window.area for each in of_views for window in each), 8 * sum(w.area for w in of_maps)]
    views, maps = empty(sum(sizes)).split(sizes)
    load_windows(source, chosen, of_views, of_maps, views.numpy(), maps.numpy())
    height = side if rows is None else rows[1] - rows[0]
    return MicroBatch(
        views=views.view(count, 3, 3, height, side)
        if rows is None or cameras is None
        else Bands(views, [[window.rows for window in each] for each in of_views]),
        maps=maps.view(count, 8, height, side),
        weight=weights_of(slots),
        keys=[entry.key for entry in chosen],
        orientations=turns,
        cameras=None if cameras is None else stacked(cameras),
        rows=rows,
    )


def load_mixture(
    source: Source,
    entries: Sequence[Entry],
    slots: Sequence[Slot],
    augmentation: Augmentation,
    alignment: Alignment | None,
    rows: tuple[int, int] | None,
) -> Mixture | None:
    """Load the partners of those stored samples that are mixed with one, each as it is shown by itself in that epoch."""
    at, others, masks = [], [], []
    for place, slot in enumerate(slots):
        key = entries[slot.index].key
        other = partner(augmentation, slot.epoch, key, len(entries))
        if other is not None:
            row = unchanged()
            row[MASK], row[WAVES] = mask(uniforms(f"{augmentation.seed} {slot.epoch} {key} mask"))
            at.append(place)
            others.append(slot._replace(index=other))
            masks.append(row)
    if not at:
        return None
    partners = load_stored(source, entries, others, augmentation, alignment, rows)
    return Mixture(partners, torch.tensor(at), stacked(masks))


def load_rendered(
    source: RenderedSource,
    entries: Sequence[RenderedEntry],
    slots: Sequence[Slot],
    augmentation: Augmentation | None,
    alignment: Alignment | None,
) -> MicroBatch:
    """Load maps alone, and what there is to be rendered of them.

    Of one that takes something from a partner, that one's maps, of one of `entries`, too.
    """
    chosen = [entries[slot.index] for slot in slots]
    pairs = list(zip(slots, chosen, strict=True))
    maps = empty_maps(len(slots), source.size)
    for entry, out in zip(chosen, maps, strict=True):
        source.maps_into(entry, out.numpy())
    drawn = [source.draw(entry, slot.epoch, augmentation, len(entries)) for slot, entry in pairs]
    rendering = Rendering(
        scenes=stacked([each.scene.encoded for each in drawn]),
        cameras=stacked([each.cameras for each in drawn]),
        keys=stacked([each.scene.keys for each in drawn]),
        changes=None if augmentation is None else stacked([each.changes for each in drawn]),
        partners=partners_of(source, entries, [each.partner for each in drawn]),
        parts=any(each.shows_a_part for each in drawn),
        dirty=any(entry.renders == "dirty" for entry in chosen),
    )
    cameras = None
    if alignment:
        rows = zip(drawn, pairs, strict=True)
        cameras = stacked([alignment.of(d.cameras, slot.epoch, entry.key) for d, (slot, entry) in rows])
    keys = [entry.key for entry in chosen]
    return MicroBatch(None, maps, weights_of(slots), keys, cameras=cameras, rendering=rendering)


def partners_of(
    source: RenderedSource, entries: Sequence[RenderedEntry], others: Sequence[int | None]
) -> Tensor | None:
    """Return the maps (B, 8, S, S) of the samples' partners, zeros where there is none; None: no sample has one."""
    if all(other is None for other in others):
        return None
    partners = empty_maps(len(others), source.size)
    for other, out in zip(others, partners, strict=True):
        if other is None:
            out.zero_()
        else:
            source.maps_into(entries[other], out.numpy())
    return partners


def stacked(rows: Sequence[np.ndarray]) -> Tensor:
    """Return small arrays of one shape as one tensor."""
    return torch.from_numpy(np.stack(rows))


def weights_of(slots: Sequence[Slot]) -> Tensor:
    """Return the slots' weights, float32 (B,)."""
    return torch.tensor([slot.weight for slot in slots], dtype=torch.float32)


def empty_maps(count: int, side: int) -> Tensor:
    """Return fresh memory for maps, uint8 (count, 8, side, side)."""
    return empty(count * 8 * side * side).view(count, 8, side, side)


def empty(nbytes: int) -> Tensor:
    """Return fresh memory, uint8 (nbytes,); in a worker process shared with its parent."""
    if get_worker_info() is None:
        # numpy asks for huge pages, torch doesn't: touching 71 MB for the first time costs 1 ms or 30.
        return torch.from_numpy(np.empty(nbytes, np.uint8))
    # As `default_collate` does: memory that isn't shared yet would be copied on its way to the parent.
    try:
        storage = torch.UntypedStorage._new_shared(nbytes)
    except RuntimeError as error:
        raise UserError(f"no {nbytes / 2**20:.0f} MiB of shared memory for a batch; {MORE_SHARED}") from error
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (nbytes,))  # type: ignore[call-overload]
