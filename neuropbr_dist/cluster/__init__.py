"""Where this process runs, how ranks agree, and when to stop."""

from neuropbr_dist.cluster.environment import Environment, detect
from neuropbr_dist.cluster.process_group import (
    everyone,
    from_rank_0,
    is_rank_0,
    pick_device,
    process_group,
    refuse_differences,
)
from neuropbr_dist.cluster.stop import StopFlag, ignore_stop_signals

__all__ = [
    "Environment",
    "StopFlag",
    "detect",
    "everyone",
    "from_rank_0",
    "ignore_stop_signals",
    "is_rank_0",
    "pick_device",
    "process_group",
    "refuse_differences",
]
