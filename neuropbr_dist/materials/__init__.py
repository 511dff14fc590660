"""What a material is and how it looks: built-in procedural families, scenes, shading. Knows no data set.

Material (seed, index) of the built-in families has correlated maps at any size, three clean and three
dirty views, and always the same bytes.
"""

from neuropbr_dist.materials.families import FAMILIES, family_name, material_maps
from neuropbr_dist.materials.render import render_views

__all__ = ["FAMILIES", "family_name", "material_maps", "render_views"]
