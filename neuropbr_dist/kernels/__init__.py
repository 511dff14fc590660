"""Hand-written operations that pay on a GPU, each beside its plain-torch twin.

Channels-last half precision on CUDA runs the kernels, everything else the twins: the same
functions, which a test holds against each other. Attention's kernel is a package's, FlashAttention-4,
where that is installed. Measured gains: `benchmarks/`.
"""

from neuropbr_dist.kernels.attention import OPERATIONS as ATTENTION_OPERATIONS
from neuropbr_dist.kernels.attention import attention, flash_gains, flash_installed
from neuropbr_dist.kernels.conv import conv
from neuropbr_dist.kernels.dispatch import (
    beside,
    channels_last,
    compute_dtype,
    enable,
    full_precision,
    usable,
)
from neuropbr_dist.kernels.maps import activate_maps
from neuropbr_dist.kernels.merge import COPIES, pass_and_merge
from neuropbr_dist.kernels.norm_act import group_norm_act
from neuropbr_dist.kernels.strip_conv import Reach
from neuropbr_dist.kernels.upsample import upsample_2x
from neuropbr_dist.kernels.views import VIEWS, max_pool, max_pool_and_mean, mean_over_views, pass_and_mean

__all__ = [
    "ATTENTION_OPERATIONS",
    "COPIES",
    "VIEWS",
    "Reach",
    "activate_maps",
    "attention",
    "beside",
    "channels_last",
    "compute_dtype",
    "conv",
    "enable",
    "flash_gains",
    "flash_installed",
    "full_precision",
    "group_norm_act",
    "max_pool",
    "max_pool_and_mean",
    "mean_over_views",
    "pass_and_mean",
    "pass_and_merge",
    "upsample_2x",
    "usable",
]
