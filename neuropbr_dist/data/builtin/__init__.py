"""Built-in procedural materials: maps, renders, an on-disk cache, and export to the guide's layout.

A finite set for any machine without data: material (seed, index) has
correlated maps at any size, three clean and three dirty views, and always
the same bytes.
"""

from .cache import BuiltinCache
from .families import FAMILIES, family_name, material_maps
from .generate import generate
from .render import render_views

__all__ = ["FAMILIES", "BuiltinCache", "family_name", "generate", "material_maps", "render_views"]
