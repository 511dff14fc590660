"""Command-line choices of one start of a run, apart from what the run is."""

from __future__ import annotations

from dataclasses import dataclass, field

from neuropbr_dist.config.overrides import Overrides
from neuropbr_dist.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Start:
    """Choices of a person for one start of a run; another start of the same run may have others.

    Args:
        overrides: fields named on the command line: they also win over a saved configuration.
        resume: None: a fresh start; `auto`: the newest good checkpoint of the run's folder; else a path.
        init_from: checkpoint or exported file whose weights a fresh start takes; a start that resumes leaves it alone.
        overwrite: delete the run that the folder holds.
        allow_data_change: resume although data set, order or global batch have changed.
        stop_after_epochs, stop_after_steps: save and stop there, counted over the whole run.
        profile: first and last step to trace, from 1.
    """

    overrides: Overrides = field(default_factory=Overrides)
    resume: str | None = None
    init_from: str | None = None
    overwrite: bool = False
    allow_data_change: bool = False
    stop_after_epochs: int | None = None
    stop_after_steps: int | None = None
    profile: tuple[int, int] | None = None


def steps_of(text: str) -> tuple[int, int]:
    """Return the first and last step to trace of `7-9` or `7`, counted from 1 as in the log.

    Raises:
        UserError: anything else.
    """
    first, _, last = text.partition("-")
    try:
        steps = int(first), int(last or first)
    except ValueError:
        steps = (0, 0)
    if not 1 <= steps[0] <= steps[1]:
        raise UserError(f"--profile {text}: give one step or two, N or N-M with 1 <= N <= M")
    return steps
