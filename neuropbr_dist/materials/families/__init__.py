"""Built-in procedural materials, by family: material (seed, index) is the same at any size, and always the same bytes."""

from neuropbr_dist.materials.families.registry import (
    FAMILIES,
    check_size,
    family_name,
    material_maps,
    random_stream,
)

__all__ = ["FAMILIES", "check_size", "family_name", "material_maps", "random_stream"]
