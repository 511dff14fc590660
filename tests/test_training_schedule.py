"""Learning rates as functions of progress."""

import math

import pytest

from neuropbr_dist.config import OptimizerConfig
from neuropbr_dist.training.schedule import Schedule

PEAK, FLOOR = 1e-3, 1e-6


def schedule(kind, **fields):
    settings = {"scheduler_warmup_epochs": 5, "scheduler_min_lr": FLOOR, "scheduler_epochs": 100}
    return Schedule(OptimizerConfig(scheduler=kind, **settings | fields), PEAK)


@pytest.mark.parametrize("kind", ["cosine", "step", "plateau", "none"])
def test_warm_up_is_linear_from_0_to_the_peak(kind):
    s = schedule(kind)
    assert [s.at(e) for e in (0, 1, 2.5, 4)] == pytest.approx([0, PEAK / 5, PEAK / 2, PEAK * 4 / 5])
    assert s.at(5) == PEAK


@pytest.mark.parametrize("kind", ["cosine", "step", "plateau", "none"])
def test_no_warm_up_begins_at_the_peak(kind):
    assert schedule(kind, scheduler_warmup_epochs=0).at(0) == PEAK


def test_cosine_ends_at_the_floor_exactly_and_stays():
    s = schedule("cosine")
    assert s.at(100) == FLOOR and s.at(150) == FLOOR
    halfway = s.at(52.5)
    assert halfway == pytest.approx((PEAK + FLOOR) / 2)
    assert s.at(5 + 95 / 4) == pytest.approx(FLOOR + (PEAK - FLOOR) * (1 + math.sqrt(0.5)) / 2)
    rates = [s.at(e) for e in range(5, 101)]
    assert rates == sorted(rates, reverse=True)


def test_horizon_is_the_schedulers_not_the_runs():
    assert schedule("cosine", scheduler_epochs=10).at(10) == FLOOR
    assert schedule("cosine", scheduler_epochs=200).at(100) > 0.4 * PEAK


def test_horizon_inside_the_warm_up():
    s = schedule("cosine", scheduler_epochs=3)
    assert s.at(3) == pytest.approx(PEAK * 3 / 5) and s.at(6) == FLOOR


def test_step_drops_every_step_size_epochs():
    s = schedule("step", step_size=30, gamma=0.1)
    assert s.at(29.9) == PEAK
    assert [s.at(e) for e in (30, 59.9, 60)] == pytest.approx([PEAK / 10, PEAK / 10, PEAK / 100])
    assert s.at(120) == FLOOR


def test_none_is_constant_after_the_warm_up():
    s = schedule("none")
    assert {s.at(e) for e in (5, 17.3, 100, 1000)} == {PEAK}


def test_floor_above_the_peak_leaves_the_peak():
    s = Schedule(OptimizerConfig(scheduler="cosine", scheduler_min_lr=1, scheduler_epochs=10), PEAK)
    assert s.at(10) == PEAK


def test_plateau_waits_for_its_patience():
    s = schedule("plateau", patience=2, factor=0.5)
    s.validated(1.0)
    rates = []
    for loss in (1.0, 1.1, 1.2, 1.0, 1.0, 1.0):  # equal is no improvement
        s.validated(loss)
        rates.append(s.at(50))
    assert rates == pytest.approx([PEAK, PEAK, PEAK / 2, PEAK / 2, PEAK / 2, PEAK / 4])


def test_improvement_restarts_the_patience():
    s = schedule("plateau", patience=1, factor=0.5)
    for loss in (1.0, 1.1, 0.9, 1.0, 0.8, 0.9):
        s.validated(loss)
    assert s.at(50) == PEAK
    s.validated(0.9)
    assert s.at(50) == PEAK / 2


def test_patience_0_drops_at_once_and_stops_at_the_floor():
    s = schedule("plateau", patience=0, factor=0.1)
    for _ in range(10):
        s.validated(1.0)
    assert s.at(50) == FLOOR


def test_a_nan_is_no_improvement():
    s = schedule("plateau", patience=0, factor=0.5)
    s.validated(math.nan)
    assert s.at(50) == PEAK / 2
    s.validated(1.0)
    s.validated(0.9)
    assert s.at(50) == PEAK / 2


def test_plateau_goes_on_from_its_saved_state():
    one, other = schedule("plateau", patience=3), schedule("plateau", patience=3)
    for loss in (1.0, 1.1, 1.2):
        one.validated(loss)
    other.load(one.state())
    for s in (one, other):
        for loss in (1.3, 1.4, 1.5):
            s.validated(loss)
    assert one.state() == other.state()
    assert other.at(50) == PEAK / 2
