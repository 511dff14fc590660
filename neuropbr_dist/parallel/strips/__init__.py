"""One sample over several ranks: each holds a strip of its rows."""

from neuropbr_dist.parallel.strips.strip import RankStrip, share_rows, strip_of

__all__ = ["RankStrip", "share_rows", "strip_of"]
