"""The built-in materials as a data set: an on-disk cache, and export to the guide's layout."""

from neuropbr_dist.data.builtin.cache import BuiltinCache, fill
from neuropbr_dist.data.builtin.generate import generate

__all__ = ["BuiltinCache", "fill", "generate"]
