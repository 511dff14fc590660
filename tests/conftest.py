"""Shared set-up: one thread a process, worker pools closed at the end, the table of engines printed."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.distributed import close_pools

torch.set_num_threads(1)

PARITY_TABLE: list[tuple[str, float, float]] = []
"""Row, largest relative difference to the plain loop, bound."""


@pytest.fixture(scope="session", autouse=True)
def pools():
    yield
    close_pools()


@pytest.fixture
def parity_table():
    return PARITY_TABLE


def pytest_terminal_summary(terminalreporter):
    if PARITY_TABLE:
        terminalreporter.section("engines against the plain loop: largest relative difference")
        for row, difference, bound in PARITY_TABLE:
            mark = "ok" if difference <= bound else "OUT"
            terminalreporter.write_line(f"{difference:9.1e}  (bound {bound:.0e})  {mark:3}  {row}")
