"""Training state on disk: sharded, canonical, verified. Knows fragments of tensors, not engines."""

from neuropbr_dist.checkpoint.folders import (
    BEST,
    LATEST,
    check_folder,
    check_outside,
    clear,
    epoch_name,
    find,
    retain,
    step_name,
)
from neuropbr_dist.checkpoint.fragments import StagedState, reserve, share, stage
from neuropbr_dist.checkpoint.lock import RunLock
from neuropbr_dist.checkpoint.saver import AsyncSaver, SaveTiming
from neuropbr_dist.checkpoint.store import Checkpoint, open_newest, save, write
from neuropbr_dist.checkpoint.verify import verify
from neuropbr_dist.fragment import Fragment

__all__ = [
    "BEST",
    "LATEST",
    "AsyncSaver",
    "Checkpoint",
    "Fragment",
    "RunLock",
    "SaveTiming",
    "StagedState",
    "check_folder",
    "check_outside",
    "clear",
    "epoch_name",
    "find",
    "open_newest",
    "reserve",
    "retain",
    "save",
    "share",
    "stage",
    "step_name",
    "verify",
    "write",
]
