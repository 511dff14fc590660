"""What the fork server of `tests.distributed` imports before it forks."""

import deepspeed  # noqa: F401
import torch

import tests.parity  # noqa: F401

torch.set_num_threads(1)
