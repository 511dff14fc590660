"""Environment of this process, agreement between ranks, and the time to stop."""

from neuropbr_dist.cluster.deadline import Deadline, Every, allocation_end, last_resort
from neuropbr_dist.cluster.environment import Environment, detect
from neuropbr_dist.cluster.process_group import check_alike, pick_device, process_group
from neuropbr_dist.cluster.stop import StopFlag, StopReason, launcher_patience

__all__ = [
    "Deadline",
    "Environment",
    "Every",
    "StopFlag",
    "StopReason",
    "allocation_end",
    "check_alike",
    "detect",
    "last_resort",
    "launcher_patience",
    "pick_device",
    "process_group",
]
