"""Shared set-up: one thread a process, worker pools closed at the end."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.distributed import close_pools

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def pools():
    yield
    close_pools()
