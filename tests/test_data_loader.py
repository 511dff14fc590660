"""Loader processes that die or hang: a line that names them, in time, and a stop is heard meanwhile."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from neuropbr_dist.config import DataConfig
from neuropbr_dist.data import load, loader, workers
from neuropbr_dist.data.files.entries import Sample
from neuropbr_dist.data.load import empty
from neuropbr_dist.data.loader import Interrupted, batches_of, validation_slots
from neuropbr_dist.data.sources import Source
from neuropbr_dist.errors import UserError

pytestmark = pytest.mark.multiprocess
DATA = DataConfig(num_workers=1, prefetch_factor=1, pin_memory=False)
CPU = torch.device("cpu")


class Faulty(Source):
    """Four samples; what `fault` says happens instead of the third."""

    size = 16

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.entries = [Sample(str(i), "clean", "wood", (), (), None) for i in range(4)]  # type: ignore[arg-type]

    def at(self, size: int) -> Faulty:
        return self

    def load(self, entry: Sample) -> tuple[np.ndarray, np.ndarray]:
        if entry.name == "2" and self.fault == "hang":
            time.sleep(600)
        elif entry.name == "2":
            time.sleep(1.0 * (self.fault == "SIGSTOP"))  # a thread of this process gives notice of the others
            os.kill(os.getpid(), getattr(signal, self.fault))
        return np.zeros((3, 3, 16, 16), np.uint8), np.zeros((8, 16, 16), np.uint8)


def read(fault: str, **options) -> list[str]:
    source, found = Faulty(fault), []
    slots = validation_slots(4, 1, 0, 1)
    try:
        with batches_of(DATA, source, source.entries, slots, CPU, **options) as batches:
            for batch in batches:
                found += batch.keys
    finally:
        assert found == ["clean/0", "clean/1"][: len(found)]
    return found


@pytest.mark.parametrize("fault, remedy", [("SIGKILL", "out of memory"), ("SIGBUS", "--shm-size")])
def test_a_killed_process_is_named(fault, remedy):
    with pytest.raises(UserError, match=rf"loader process \d+ was killed by {fault}; .*{remedy}"):
        read(fault)


@pytest.fixture
def soon(monkeypatch):
    for module in (loader, workers):
        monkeypatch.setattr(module, "POLL_S", 0.1)
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)


def test_a_batch_has_a_time_limit(soon, monkeypatch, messages):
    monkeypatch.setattr(loader, "SAY_AFTER_S", 0.2)
    with pytest.raises(UserError, match=r"no batch for 1 s .*: loader processes \d+ hang"):
        read("hang", limit_s=1)
    assert "waiting for loader processes" in " ".join(messages)


def test_a_stop_is_heard_in_a_wait(soon):
    with pytest.raises(Interrupted):
        read("hang", stopped=lambda: True)


@pytest.mark.parametrize("to_stop", [False, True])
def test_processes_stopped_while_they_hand_over_a_batch_are_ended(soon, monkeypatch, to_stop):
    """torch waits for the memory of a batch in C, deaf to signals and without a limit."""
    monkeypatch.setattr(loader, "HANGS_S", 600.0 if to_stop else 0.5)
    monkeypatch.setattr(workers, "STOPPED_S", 0.5)
    source, slots = Faulty("SIGSTOP"), validation_slots(4, 1, 0, 1)
    data = replace(DATA, prefetch_factor=4)
    wanted = pytest.raises(Interrupted) if to_stop else pytest.raises(UserError, match=r"processes \d+ hung")
    with (
        batches_of(data, source, source.entries, slots, CPU, stopped=lambda: to_stop, limit_s=60) as batches,
        wanted,
    ):
        while not any(child.status() == psutil.STATUS_STOPPED for child in psutil.Process().children()):
            time.sleep(0.05)
        list(batches)


def test_a_temporary_folder_too_long_for_sockets_is_told(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + "a" * 90)
    refused = pytest.raises(UserError, match=r"TMPDIR = /a+: too long .* at most 75 characters")
    with refused, batches_of(DATA, Faulty("hang"), [], [], CPU):
        pass
    with batches_of(replace(DATA, num_workers=0), Faulty("hang"), [], [], CPU):
        pass


def test_too_little_shared_memory_names_the_remedy(monkeypatch):
    def full(_nbytes: int) -> None:
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(load, "get_worker_info", lambda: object())
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", full)
    with pytest.raises(UserError, match=r"no 2 MiB of shared memory .*--shm-size.* data.num_workers = 0"):
        empty(2 << 20)
