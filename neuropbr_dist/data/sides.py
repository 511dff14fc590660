"""Check of how well a set serves a side in pixels, and what to pack where it doesn't."""

from __future__ import annotations

from neuropbr_dist.data.packed.source import PackedSource
from neuropbr_dist.data.rendered.materials import PackedMaterials
from neuropbr_dist.data.rendered.source import RenderedSource
from neuropbr_dist.data.sources import Source

FAR_ABOVE = 4
"""Times a side: to decode files so large for it takes 16 times the bytes that a step needs."""


def side_advice(source: Source, side: int) -> str | None:
    """Return in one line what to pack for pictures of `side` px, or None where the set serves that side well."""
    if not source.stored_sides:
        return None
    largest = max(source.stored_sides)
    store = source.materials if isinstance(source, RenderedSource) else source
    if largest < side:
        return (
            f"{side} px, but the set's pictures have {largest}: they are enlarged and bring nothing that a stage at "
            f"{largest} px hasn't; import or pack originals of {side} px or more"
        )
    if isinstance(store, PackedSource | PackedMaterials):
        if side in source.stored_sides or largest < 2 * side:
            return None
        sides = ", ".join(map(str, source.stored_sides))
        return (
            f"{side} px is none of the packed set's levels ({sides}): each sample is read at its own side and made "
            "smaller; one of them costs less"
        )
    if largest < FAR_ABOVE * side:
        return None
    return (
        f"{side} px, but the files have {largest}: each is decoded whole and made smaller; pack the set "
        "(launch/data.py pack), whose levels are read as they are"
    )
