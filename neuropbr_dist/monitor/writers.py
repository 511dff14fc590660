"""The run's log: one call per event, written to every place that is switched on.

`{folder}/metrics.jsonl`, `{folder}/history.jsonl` (each start and end) and `{folder}/looks` (pictures
of held-out samples) are always there; TensorBoard events go to `{folder}/logs`, Weights & Biases keeps
its files in `{folder}/wandb`.
"""

from __future__ import annotations

import html
import math
import os
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_text, write_text
from neuropbr_dist.monitor.figure import ERROR, VIEWS, comparison
from neuropbr_dist.monitor.look_files import FOLDER, cut_back_looks, write_look
from neuropbr_dist.monitor.pictures import Look
from neuropbr_dist.monitor.run_logs import HISTORY, LOGS, METRICS, SAMPLES, run_log


class Writer:
    """One place that a run's log goes to, with the calls of `RunLog`; this one keeps nothing."""

    def scalars(self, step: int, epoch: int, samples: int, values: dict[str, float]) -> None: ...
    def images(self, step: int, images: dict[str, np.ndarray]) -> None: ...
    def text(self, step: int, texts: dict[str, str]) -> None: ...
    def cut_back(self, step: int) -> None: ...
    def close(self) -> None: ...


class RunLog:
    """Scalars, pictures and texts of a run, and the lines of its other logs.

    A file that can't be written (disk full, say) ends the log, not the call: the first
    failure is kept in `failure`, for the ranks to agree on at the next step's end, and `check` raises it.

    Args:
        folder: the run's folder; made if missing.
        tensorboard: write TensorBoard events.
        wandb: keyword arguments of `wandb.init` (`project`, `name`, `config`, ...), or None for no W&B.
        enabled: False makes every call do nothing; only rank 0 writes.
        check: called before each write; raises a UserError where the folder isn't this run's any more.

    Raises:
        UserError: a package that the config asks for is missing, W&B refuses to start, or something else stands where
            a log or the looks are to be.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        tensorboard: bool,
        wandb: dict[str, Any] | None,
        enabled: bool,
        check: Callable[[], None] = lambda: None,
    ):
        self._check = check
        self.failure: UserError | None = None
        self.folder = Path(folder)
        self.writers: list[Writer] = []
        self.enabled = enabled
        if not enabled:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        check_places(self.folder)
        self.writers.append(Metrics(self.folder))
        if tensorboard:
            self.writers.append(TensorBoard(self.folder / "logs"))
        if wandb is not None:
            self.writers.append(WeightsAndBiases(self.folder, wandb))

    def started(self, step: int, facts: dict[str, Any]) -> None:
        """Note that the run starts, or goes on, after `step`; `facts` say where and on what."""
        self.line(HISTORY, {"event": "start", "step": step, "time": now()} | facts)
        self.text(step, {"start": yaml.safe_dump(facts, sort_keys=False)})

    def ended(self, step: int, how: str) -> None:
        """Note that the run ends after `step`: `finished`, or why it stopped."""
        self.line(HISTORY, {"event": "end", "step": step, "time": now(), "how": how})

    def line(self, name: str, record: dict[str, Any]) -> None:
        """Append to one of `run_logs.LOGS`; the record has a `step`."""
        self._guarded(lambda: run_log(self.folder, name).append(record))

    def scalars(self, step: int, epoch: int, samples: int, values: dict[str, float]) -> None:
        """Write values such as `train/G_loss` at a step; `samples` counts those the run has consumed."""
        self._each(lambda writer: writer.scalars(step, epoch, samples, values))

    def looks(self, step: int, looks: Sequence[Look], *, figures: bool) -> None:
        """Write held-out samples' maps as files; with `figures` also drawn, for TensorBoard and W&B."""
        for look in looks:
            self._guarded(partial(write_look, self.folder, step, look))
            if figures and len(self.writers) > 1:  # metrics.jsonl has no pictures
                figure = {"comparison": None, "views": [VIEWS], "error": [ERROR]}
                drawn = {name: comparison(look, rows=rows) for name, rows in figure.items()}
                self.images(step, {f"val/{name}/{look.key}": picture for name, picture in drawn.items()})

    def images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Write pictures by name, uint8 HWC or HW."""
        self._each(lambda writer: writer.images(step, images))

    def text(self, step: int, texts: dict[str, str]) -> None:
        """Write texts by name, such as the run's configuration."""
        self._each(lambda writer: writer.text(step, texts))

    def cut_back(self, step: int) -> None:
        """Forget what lies after `step`: a resumed run calls this once, before it writes."""
        self._each(lambda writer: writer.cut_back(step))
        self._guarded(lambda: run_log(self.folder, SAMPLES).keep(lambda line: line["step"] <= step))
        self._guarded(partial(cut_back_looks, self.folder, step))

    def check(self) -> None:
        """Raise the first failure, a UserError, if something couldn't be written."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Write out everything."""
        self._each(lambda writer: writer.close())
        self.writers = []

    def _each(self, call: Callable[[Writer], None]) -> None:
        for writer in self.writers:
            self._guarded(partial(call, writer))

    def _guarded(self, write: Callable[[], object]) -> None:
        if not self.enabled or self.failure:
            return
        try:
            self._check()
            write()
        except (OSError, UserError) as error:
            told = f"{self.folder}: the log can't be written: {error}"
            self.failure = error if isinstance(error, UserError) else UserError(told)
            self.writers = []


def check_places(folder: Path) -> None:
    """Refuse at the start what would end the run at the first log step or validation."""
    for path in (folder / FOLDER, *(folder / name for name in LOGS)):
        fits = path.is_dir() if path.name == FOLDER else path.is_file()
        if os.path.lexists(path) and not fits:
            raise UserError(f"{path}: not a {'folder' if path.name == FOLDER else 'file'}; delete it")


def now() -> str:
    """Return the time in UTC to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Metrics(Writer):
    """Scalars as one JSON object a line: step, epoch, samples, then the values.

    JSON has no NaN and no infinity: they are the strings "nan", "inf" and "-inf",
    which Python's `float` reads back.
    """

    def __init__(self, folder: Path):
        self._log = run_log(folder, METRICS)

    def scalars(self, step: int, epoch: int, samples: int, values: dict[str, float]) -> None:
        finite = {name: v if math.isfinite(v) else str(float(v)) for name, v in values.items()}
        self._log.append({"step": step, "epoch": epoch, "samples": samples, **finite})

    def cut_back(self, step: int) -> None:
        self._log.keep(lambda line: line["step"] <= step)


class TensorBoard(Writer):
    """Event files for TensorBoard."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "training.use_tensorboard is true but the tensorboard package is missing: "
                "pip install tensorboard, or set it to false"
            ) from error
        self.folder = folder
        self._open = SummaryWriter
        threading.excepthook = _said_once
        try:
            self._writer = SummaryWriter(str(folder))
        except OSError as error:
            raise UserError(f"{folder}: can't write TensorBoard's files: {error}") from error

    def scalars(self, step: int, epoch: int, samples: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, step: int, images: dict[str, np.ndarray]) -> None:
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC" if image.ndim == 3 else "HW")

    def text(self, step: int, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            self._writer.add_text(name, text, step)

    def cut_back(self, step: int) -> None:
        """Tell TensorBoard to hide the events after `step`; the files keep them."""
        self._writer.close()
        self._writer = self._open(str(self.folder), purge_step=step + 1)

    def close(self) -> None:
        self._writer.close()


def _said_once(error: threading.ExceptHookArgs, plain: Any = threading.excepthook) -> None:
    """Print no traceback of a disk's error beside the message: TensorBoard's thread keeps it for the next
    call, which tells it."""
    if not (isinstance(error.exc_value, OSError) and type(error.thread).__name__ == "_AsyncWriterThread"):
        plain(error)


class WeightsAndBiases(Writer):
    """A W&B run, online or (`WANDB_MODE=offline`) on disk; a resumed run goes on under the same id.

    W&B can't take back what it has: after a resume the steps that are done again
    appear twice. Curves are drawn over `step`, not over W&B's own counter.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "training.use_wandb is true but the wandb package is missing: "
                "pip install wandb, or set it to false"
            ) from error
        id_file = folder / "wandb_id"
        known: dict[str, Any] = {}
        if id_file.exists():
            known = {"id": read_text(id_file).strip(), "resume": "allow"}
        try:
            self._run = wandb.init(dir=str(folder), **known, **settings)
        except wandb.Error as error:
            raise UserError(
                f"training.use_wandb: W&B refused to start ({error}); run `wandb login`, "
                "set WANDB_MODE=offline, or set it to false"
            ) from error
        write_text(id_file, self._run.id + "\n")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._image, self._html = wandb.Image, wandb.Html

    def scalars(self, step: int, epoch: int, samples: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, "epoch": epoch, "samples": samples, **values})

    def images(self, step: int, images: dict[str, np.ndarray]) -> None:
        self._run.log({"step": step} | {name: self._image(image) for name, image in images.items()})

    def text(self, step: int, texts: dict[str, str]) -> None:
        pages = {name: self._html(f"<pre>{html.escape(text)}</pre>") for name, text in texts.items()}
        self._run.log({"step": step, **pages})

    def close(self) -> None:
        self._run.finish()
