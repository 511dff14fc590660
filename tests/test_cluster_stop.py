"""Stop signals: one rank's signal stops all ranks at one boundary; a late second one ends the process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from neuropbr_dist.cluster import StopFlag, StopReason, launcher_patience
from neuropbr_dist.cluster.stop import FORCED_EXIT, SIGNALS
from tests.support.distributed import run
from tests.support.forked import Ended, call

ROOT = Path(__file__).parents[1]


def steps_until_stop(signalled: int, at: int, number: int, times: int = 1) -> tuple[int, str | None]:
    """Steps done when `agreed` says stop; rank `signalled` gets a real signal during step `at`."""
    stop = StopFlag()
    for step in range(at + 10):
        if stop.agreed():
            return step, stop.signal
        if step == at and dist.get_rank() == signalled:
            for _ in range(times):
                os.kill(os.getpid(), number)
            until_noted(stop)
    raise AssertionError("never stopped")


def until_noted(stop: StopFlag) -> None:
    while stop.signal is None:
        time.sleep(0.001)


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize(("world", "signalled"), [(2, 0), (2, 1), (4, 2)])
def test_one_signal_stops_all_ranks_at_one_boundary(number, world, signalled):
    found = run(world, f"{__name__}:steps_until_stop", signalled=signalled, at=3, number=int(number))
    assert {step for step, _ in found} == {4}  # at the end of the step in which it came
    assert [name for _, name in found if name] == [number.name]


@pytest.mark.multiprocess
def test_a_signal_that_comes_twice_at_once_counts_as_one():
    arguments = {"signalled": 1, "at": 0, "number": int(signal.SIGUSR1), "times": 2}
    assert len({step for step, _ in run(2, f"{__name__}:steps_until_stop", **arguments)}) == 1


@pytest.mark.multiprocess
def test_different_signals_on_all_ranks():
    """A launcher passes SIGTERM on to every rank, and Slurm sends its own to each."""
    found = run(2, f"{__name__}:stop_everywhere")
    assert found == [4, 4]


def stop_everywhere() -> int:
    stop = StopFlag()
    for step in range(20):
        if stop.agreed():
            return step
        if step == 3 + 2 * dist.get_rank():
            os.kill(os.getpid(), SIGNALS[dist.get_rank()])
            until_noted(stop)
    raise AssertionError("never stopped")


def script(between: str, then: str) -> Ended:
    """A process that gets two signals, with `between` and `then` in its way; signals within 0.2 s count as one."""
    code = (
        "import os, signal, threading, time\n"
        "from neuropbr_dist.cluster import stop\n"
        "stop.SAME_SIGNAL_S = 0.2\n"
        "flag = stop.StopFlag()\n"
        "assert not flag.agreed()\n"
        "def second():\n"
        f"    {between}\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=second).start()\n"
        f"{then}\n"
        "assert flag.agreed() and flag.signal == 'SIGTERM'\n"
        "print('goes on to save')\n"
    )
    return call(code)


def test_a_second_signal_at_once_is_the_same_one():
    done = script(between="pass", then="time.sleep(0.5)")
    assert (done.code, done.out) == (0, "goes on to save\n"), done.err


@pytest.mark.parametrize("where", ["Python", "C++"])
def test_a_later_second_signal_ends_the_process(where):
    """Also one that Python's own handlers never reach: its main thread waits in C++ for a peer that is gone."""
    waits = {
        "Python": "time.sleep(60)",
        "C++": (
            "import torch.distributed as dist\n"
            "dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False).get('never set')"
        ),
    }
    done = script(between="time.sleep(1)", then=waits[where])
    assert (done.code, done.out) == (FORCED_EXIT, "")
    assert done.err.endswith("second stop signal: leaving now, the last checkpoint stands\n")


def test_request_stops_one_process():
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        stop = StopFlag()
        assert not stop.agreed()
        stop.request(StopReason.TIME_LIMIT)
        assert stop.agreed() is StopReason.TIME_LIMIT and stop.signal is None
        stop.request(StopReason.SIGNAL)  # the weightier reason stays
        assert stop.agreed() is StopReason.TIME_LIMIT
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def agreed_on(wishes: list[str | None], saves: list[bool]) -> list[tuple[str | None, bool]]:
    """What `agreed` says at three boundaries; each rank wishes before the first."""
    stop = StopFlag()
    rank = dist.get_rank()
    if wishes[rank] is not None:
        stop.request(StopReason(wishes[rank]))
    if saves[rank]:
        stop.request_save()
    return [(reason and reason.value, stop.save_agreed) for reason in (stop.agreed() for _ in range(3))]


@pytest.mark.multiprocess
def test_a_request_of_one_rank_is_every_ranks_stop_with_its_reason():
    found = run(2, f"{__name__}:agreed_on", wishes=[None, "time limit"], saves=[False, False])
    assert found == [[("time limit", False)] * 3] * 2
    found = run(2, f"{__name__}:agreed_on", wishes=["signal", "failed"], saves=[False, False])
    assert found == [[("failed", False)] * 3] * 2


@pytest.mark.multiprocess
def test_a_request_to_save_is_agreed_on_once():
    found = run(2, f"{__name__}:agreed_on", wishes=[None, None], saves=[True, False])
    assert found == [[(None, True), (None, False), (None, False)]] * 2


def test_a_stop_from_outside_asks_for_another_start_of_the_job():
    assert [str(reason) for reason in StopReason if reason.requeues] == [
        "signal",
        "time limit",
        "launcher gone",
    ]
    with pytest.raises(ValueError, match="'tired' is not a valid StopReason"):
        StopReason("tired")


def heard_although_ignored() -> str | None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    stop = StopFlag()
    os.kill(os.getpid(), signal.SIGUSR1)
    until_noted(stop)
    return stop.signal


@pytest.mark.multiprocess
def test_a_warning_that_the_launcher_ignores_for_itself_is_heard():
    """As under slurm/elastic.sbatch: torchrun has no handler, so its shell ignores the signal, and ranks inherit that."""
    assert run(1, f"{__name__}:heard_although_ignored") == ["SIGUSR1"]


def test_a_closed_terminal_is_not_heard_under_nohup(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        flag = StopFlag()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        flag.close()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_rank_whose_launcher_is_gone_stops(monkeypatch):
    for launched in (False, True):
        flag = StopFlag(launched)
        assert flag.agreed() is None
        with monkeypatch.context() as patch:
            patch.setattr(os, "getppid", lambda: 1)
            assert flag.agreed() is (StopReason.ORPHANED if launched else None)
            assert flag.is_set is launched
        flag.close()


def test_the_launchers_patience_is_read(monkeypatch):
    assert launcher_patience("slurm") is None and launcher_patience("torchrun") == 30
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    assert launcher_patience("torchrun") == 600 and launcher_patience("deepspeed") == 30
