"""Objects and errors between two real processes: what one says or meets, all know."""

from __future__ import annotations

import errno
import os

import pytest
import torch.distributed as dist

from neuropbr_dist.errors import UserError
from neuropbr_dist.ranks import (
    all_gather_object,
    barrier,
    broadcast_object,
    is_rank_0,
    joint_error,
    on_each_rank,
    on_rank_0,
    rank,
    world_size,
)
from tests.support.distributed import run


class Odd(Exception):
    """One that can be pickled and not unpickled, as some libraries' are."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


ERRORS = {
    "mendable": lambda: UserError("data.val_ratio: too large"),
    "disk": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b"),
    "program": lambda: ZeroDivisionError("division by zero"),
    "odd": lambda: Odd(1, 2),
}


def outcome(call) -> str:
    try:
        return repr(call())
    except Exception as error:
        cause = type(error.__cause__).__name__ if error.__cause__ else "-"
        return f"{type(error).__name__}: {error} ({cause})"


def raise_on(ranks, name: str) -> str:
    if rank() in ranks:
        raise ERRORS[name]()
    return f"fine on {rank()}"


# -- alone -----------------------------------------------------------------------------------


def test_one_process_is_all_ranks():
    assert (rank(), world_size(), is_rank_0()) == (0, 1, True)
    assert all_gather_object("mine") == ["mine"] and broadcast_object("mine") == "mine"
    assert on_rank_0(lambda: "mine") == on_each_rank(lambda: "mine") == "mine"
    barrier()


def test_one_process_raises_in_the_same_words():
    for call in (on_rank_0, on_each_rank):
        assert outcome(lambda c=call: c(lambda: raise_on([0], "mendable"))) == (
            "UserError: data.val_ratio: too large (UserError)"
        )
        assert outcome(lambda c=call: c(lambda: raise_on([0], "disk"))) == (
            "UserError: [Errno 28] No space left on device: '/a/b' (OSError)"
        )
        assert outcome(lambda c=call: c(lambda: raise_on([0], "program"))) == (
            "RuntimeError: ZeroDivisionError: division by zero (ZeroDivisionError)"
        )


def test_one_error_for_several_ranks_says_each_thing_once():
    full, small = OSError(28, "full"), UserError("too small")
    assert str(joint_error({1: full, 3: full})) == "[Errno 28] full"
    several = joint_error({0: small, 1: full, 2: small}, "not saved: ")
    assert isinstance(several, UserError)
    assert str(several) == "not saved: rank 0: too small; rank 1: [Errno 28] full; rank 2: too small"
    assert isinstance(joint_error({0: small, 1: ValueError("a bug")}), RuntimeError)


# -- several ---------------------------------------------------------------------------------


def exchange():
    """Objects of every rank, of rank 0, and of the first of a group without rank 0."""
    groups = [dist.new_group([0]), dist.new_group([2, 1])]
    mine = groups[min(rank(), 1)]
    return (
        all_gather_object(rank() * 10),
        broadcast_object(f"from {rank()}"),
        on_rank_0(lambda: f"only on {rank()}"),
        on_each_rank(lambda: rank() + 100),
        on_rank_0(lambda: f"first is {rank()}", mine),
        (rank(mine), world_size(mine), is_rank_0(mine)),
    )


@pytest.mark.multiprocess
def test_objects():
    found = run(3, f"{__name__}:exchange")
    assert [line[:4] for line in found] == [
        ([0, 10, 20], "from 0", "only on 0", 100 + number) for number in range(3)
    ]
    assert found[0][4:] == ("first is 0", (0, 1, True))
    firsts = {line[4] for line in found[1:]}
    assert len(firsts) == 1 and {line[5][0] for line in found[1:]} == {0, 1}
    (first,) = [number for number in (1, 2) if found[number][5][2]]
    assert firsts == {f"first is {first}"}


def fail(ranks, name: str):
    """Each outcome, and whether the ranks still stand together afterwards."""
    on_each = outcome(lambda: on_each_rank(lambda: raise_on(ranks, name)))
    on_first = outcome(lambda: on_rank_0(lambda: raise_on(ranks, name)))
    return on_each, on_first, sum(all_gather_object(rank() + 1))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "name, text",
    [
        ("mendable", "UserError: data.val_ratio: too large"),
        ("disk", "UserError: [Errno 28] No space left on device: '/a/b'"),
        ("program", "RuntimeError: ZeroDivisionError: division by zero"),
        ("odd", "RuntimeError: Odd: 1 and 2"),
    ],
)
def test_an_error_on_one_rank_is_raised_on_all(name, text):
    cause = type(ERRORS[name]()).__name__
    for bad in (0, 1):
        for number, (on_each, on_first, total) in enumerate(
            run(2, f"{__name__}:fail", ranks=[bad], name=name)
        ):
            assert on_each == f"{text} ({cause if number == bad else '-'})"
            if bad == 0:
                assert on_first == f"{text} ({cause if number == 0 else '-'})"
            else:
                assert on_first == "'fine on 0'"  # rank 1 isn't asked
            assert total == 3


@pytest.mark.multiprocess
def test_errors_on_several_ranks_are_one():
    for on_each, _, total in run(2, f"{__name__}:fail", ranks=[0, 1], name="mendable"):
        assert on_each == "UserError: data.val_ratio: too large (UserError)" and total == 3
