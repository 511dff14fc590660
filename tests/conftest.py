"""Shared set-up: one thread a process, worker pools closed at the end, tables printed."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from neuropbr_dist.logs import CONSOLE
from tests.support.distributed import close_pools
from tests.support.said import said
from tests.support.train_runs import half_run, whole_run

torch.set_num_threads(1)
# A shell's background job ignores Ctrl-C, and so would the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# As what nohup starts ignores a hang-up, and the tests that send one would wait for it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

SUMMARY: dict[str, list[str]] = {}
"""Title to lines, printed at the end."""


@pytest.fixture(scope="session", autouse=True)
def pools():
    yield
    close_pools()


@pytest.fixture(autouse=True)
def nothing_on_the_console():
    """A command that a test calls sets up the console for its process, which is the next test's too."""
    yield
    package = logging.getLogger("neuropbr_dist")
    package.removeHandler(CONSOLE)
    package.propagate = True
    package.setLevel(logging.NOTSET)


@pytest.fixture
def messages():
    """What the package's loggers say during the test, a list that grows."""
    with said() as lines:
        yield lines


@pytest.fixture
def uninterrupted():
    """A whole tiny run (`tests.support.train_runs.whole_run`). Not to be written to."""
    return whole_run()


@pytest.fixture
def stopped(tmp_path):
    """A copy of the same run, stopped half-way."""
    return shutil.copytree(half_run(), tmp_path / "run", symlinks=True)


@pytest.fixture(scope="session")
def summary():
    return SUMMARY


def pytest_collection_modifyitems(items):
    """Files that start processes first: they are the long ones, and short ones fill up the end of two workers."""
    items.sort(key=lambda item: item.get_closest_marker("multiprocess") is None)


def pytest_collection_finish():
    """What is imported by now stays: no collection need look through it again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session):
    """One of several workers hands its lines to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["summary"] = SUMMARY


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A worker has ended, or died with nothing to tell."""
    for title, lines in getattr(node, "workeroutput", {}).get("summary", {}).items():
        SUMMARY.setdefault(title, []).extend(lines)


def pytest_terminal_summary(terminalreporter):
    for title, lines in SUMMARY.items():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
