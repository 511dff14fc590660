"""Work spread over processes: nothing that was done is lost when something fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from neuropbr_dist.errors import UserError
from neuropbr_dist.processes import CHUNK, in_parallel

pytestmark = pytest.mark.multiprocess
ITEMS = list(range(6 * CHUNK))


def square(item):
    return item * item


def fails_at_6(item):
    if item == 6:
        raise UserError("6 is no good")
    return item * item


def is_killed_at_6(item):
    if item == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_comes_once_with_its_result(workers):
    found = list(in_parallel(square, ITEMS, workers))
    assert sorted(found) == [(item, item * item) for item in ITEMS]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_done_before_a_failure_is_handed_out(workers):
    found = []
    with pytest.raises(UserError, match="6 is no good"):
        for item, result in in_parallel(fails_at_6, ITEMS, workers):
            assert result == item * item
            found.append(item)
    assert {0, 1, 2, 3, 4, 5} <= set(found)  # 4 and 5 stand before it in its own chunk
    assert 6 not in found and 7 not in found


def test_a_killed_process_is_one_line_that_says_what_to_do():
    with pytest.raises(UserError, match=r"a working process was killed .* start the same command again"):
        list(in_parallel(is_killed_at_6, ITEMS, 2))


def test_a_script_that_no_process_can_import_is_told_of():
    """One from standard input: `python - <<END`."""
    script = "from neuropbr_dist.processes import in_parallel\nlist(in_parallel(abs, range(9), 2))"
    done = subprocess.run([sys.executable, "-"], input=script, text=True, capture_output=True, timeout=120)
    assert done.returncode
    assert "<stdin>" in done.stderr  # its own words
    assert "or could not begin, which it has said itself, above" in done.stderr
