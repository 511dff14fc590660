"""`launch/train.py` on a tiny set, in processes that are forked with everything imported."""

from __future__ import annotations

import atexit
import json
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from neuropbr_dist.checkpoint import open_newest
from tests.support.forked import Ended, Launch
from tests.support.material_files import write_cameras_of, write_set
from tests.support.tiny import FIELDS, set_words

SINGLE_PROCESS_SAVES = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SIZE = 32
SETTINGS = {
    "data.num_workers": 0,
    "data.drop_views": 0.5,
    "data.camera_jitter": 0.008,
    **FIELDS,
    "optimizer.g_lr": 1e-3,
    "optimizer.scheduler_warmup_epochs": 1,
    "training.batch_size": 2,
    "training.global_batch_size": 2,
    "training.epochs": 4,
    "training.gan_start_epoch": 3,
    "training.log_every_n_steps": 1,
    "training.use_tensorboard": False,
}
"""Five training samples in batches of two: epochs end inside batches."""
FOUR = {"training__global_batch_size": 4, "optimizer__eps": 1e-3, "training__seed": 11}
"""Fields of runs that are compared however their batch is cut. A tiny eps makes noise of rounding. So does an element so near to a
kink, two features alike where the larger one gets the gradient, that rounding decides: of eight seeds and seven ways to cut five
are 1e-5 to 1e-3 apart by one, in a gradient's norm, the others 1e-5 at most. This seed's are 2e-6 by all seven."""
PER_STEP = {name: value for name, value in SETTINGS.items() if name != "training.global_batch_size"}
TINY = [
    "--config", "demo", "--device", "cpu", *set_words({"data.image_size": SIZE} | PER_STEP),
]  # fmt: skip
"""Words of a benchmark: the same on the built-in set, a step as large as its micro-batch."""


def start(
    folder: Path | None, *words: str, world: int = 1, env: dict[str, str] | None = None, **settings: Any
) -> Launch:
    """Begin a tiny run on the tiny set; `settings` are fields, with `__` for the dot."""
    own = [] if folder is None else ["--checkpoint-dir", str(folder)]
    return Launch([*own, *tiny_words(**settings), *words], world, env)


def run(
    folder: Path | None, *words: str, world: int = 1, env: dict[str, str] | None = None, **settings: Any
) -> Ended:
    return start(folder, *words, world=world, env=env, **settings).wait()


def command(*words: str | Path, world: int = 1, env: dict[str, str] | None = None) -> Ended:
    """Exactly these words."""
    return Launch([str(word) for word in words], world, env).wait()


def resume(folder: Path, *words: str, world: int = 1) -> Ended:
    return command("--resume", "auto", "--checkpoint-dir", folder, *words, world=world)


def tiny_words(**settings: Any) -> list[str]:
    renders, maps = tiny_set()
    chosen = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    data = ["--input-dir", str(renders), "--output-dir", str(maps), "--device", "cpu"]
    return [*data, *set_words(chosen), "--config", "guide"]


@cache
def tiny_set() -> tuple[Path, Path]:
    """(input, output) of six samples of 32 px; of six, one is held out. Not to be written to.

    All have cameras, and all miss a view or two: the tiny runs are trained on the plane.
    """
    metadata = {f"sample_{i:04d}": f"material_{i}" for i in range(6)}
    renders, maps = write_set(temporary_folder(), metadata, size=SIZE)
    write_cameras_of(renders, list(metadata))
    return renders, maps


@cache
def whole_run() -> Path:
    """Four epochs in one go; the GAN starts in the third. Not to be written to."""
    folder = temporary_folder() / "run"
    ended = run(folder, training__save_every_n_epochs=2)
    assert ended.code == 0, ended.err
    return folder


@cache
def half_run() -> Path:
    """The same, stopped after epoch 2. Copy it, don't resume it."""
    folder = temporary_folder() / "run"
    ended = run(folder, "--stop-after-epochs", "2", training__save_every_n_epochs=2)
    assert ended.code == 0 and "Stopped (--stop-after-epochs) after step 5" in ended.out, ended
    assert not (folder / "requeue").exists()
    return folder


def temporary_folder() -> Path:
    """Lasts as long as this process."""
    root = Path(mkdtemp(prefix="neuropbr-test-"))
    atexit.register(shutil.rmtree, root)
    return root


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in the newest checkpoint of a run."""
    checkpoint = open_newest(folder)
    assert checkpoint is not None
    with checkpoint:
        return checkpoint.read()


def state(folder: Path) -> dict[str, Any]:
    checkpoint = open_newest(folder)
    assert checkpoint is not None
    with checkpoint:
        return checkpoint.state


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without the figures that depend on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]


def logged_samples(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of `samples.jsonl`."""
    path = folder / "samples.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def times_seen(folder: Path, steps: int | None = None) -> dict[str, Counter[str]]:
    """Epoch -> how often it had each sample, of the first `steps`. The steps follow one another."""
    lines = logged_samples(folder)[:steps]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    seen: dict[str, Counter[str]] = {}
    for line in lines:
        for epoch, names in line["samples"].items():
            seen.setdefault(epoch, Counter()).update(names)
    return seen


def timings(folder: Path) -> list[dict[str, Any]]:
    """Start-up and saves, as the run itself timed them."""
    return [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: tensors, progress and metrics."""
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys() and len(a) > 20
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert not differing
    x, y = state(one), state(other)
    x.pop("starts"), y.pop("starts")
    assert x == y
    assert metrics(one) == metrics(other)


def differing(one: Path, other: Path) -> dict[str, float]:
    """Name -> largest difference over the lines, relative above 1."""
    a, b = metrics(one), metrics(other)
    assert [line.keys() for line in a] == [line.keys() for line in b]
    found: dict[str, float] = {}
    for x, y in zip(a, b, strict=True):
        for name in x:
            off = abs(x[name] - y[name]) / max(1, abs(x[name]))
            found[name] = max(off, found.get(name, 0))
    return found


def assert_same_metrics(one: Path, other: Path) -> None:
    """To float32's noise, where `optimizer.eps` isn't tiny."""
    found = differing(one, other)
    # Counts over thresholds and histogram bins may move by a pixel of 1024.
    counted = ("normal_angle_median", "normal_angle_p95", "normal_angle_under")
    off = {
        name: value
        for name, value in found.items()
        if value > 1e-5 and not name.startswith(tuple(f"val/{count}" for count in counted))
    }
    assert not off and len(found) > 30
