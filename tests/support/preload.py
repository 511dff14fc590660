"""What the fork server of `tests.support.distributed` imports before it forks."""

import gc

import timm  # noqa: F401
import torch
import torch._dynamo  # FSDP2 does at its first use
import torch.distributed.fsdp
import torch.testing
from PIL import Image

import neuropbr_dist.commands.train
import neuropbr_dist.parallel.replicated
import neuropbr_dist.training.run
import tests.support.parity  # noqa: F401
from neuropbr_dist.parallel.zero import import_deepspeed

assert neuropbr_dist.training.run  # what `train` imports when it is called
import_deepspeed()
Image.init()
torch.set_num_threads(1)

# Imports stay. Each collection in a rank would look through them for 0.3 s, and ZeRO-3 asks for several a run.
gc.collect()
gc.freeze()
