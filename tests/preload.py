"""What the fork server of `tests.distributed` imports before it forks."""

import deepspeed  # noqa: F401
import torch
import torch._dynamo  # FSDP2 does at its first use
import torch.distributed.fsdp
import torch.testing

import tests.parity  # noqa: F401

torch.set_num_threads(1)
