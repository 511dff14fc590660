"""Files from outside, changed in every way: an answer or a `UserError`, soon; no other exception, and nothing outside."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from neuropbr_dist.checkpoint import Fragment, RunLock, open_newest, save, step_name, verify
from neuropbr_dist.checkpoint.lock import LOCK_FILE, RECORD_BYTES
from neuropbr_dist.checkpoint.tensor_file import TensorFile, read_tensor_file, write_tensor_file
from neuropbr_dist.config import TrainConfig, from_yaml, to_yaml
from neuropbr_dist.config.deepspeed import resolve, shipped
from neuropbr_dist.inference.upstream import converted
from neuropbr_dist.inference.upstream_config import config_of
from neuropbr_dist.inference.upstream_file import UpstreamFile, read_pth
from neuropbr_dist.monitor.run_logs import LOGS, run_log
from neuropbr_dist.report.curves import charts, marks
from neuropbr_dist.report.folder import read_run
from neuropbr_dist.report.text import history_table, state, summary, tiles
from neuropbr_dist.training.state import Progress
from tests.support import upstream_stand_in as upstream
from tests.support.fuzz import FEW, MANY, Case, fuzz

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("nothing_on_the_console")]
STATE = {
    "step": 3, "cursor": 6, "best": 0.5, "skipped": {"generator": 0, "discriminator": 0}, "global_batch": 2,
    "data": "abc", "plateau": {"generator": {"best": 0.5, "waited": 0, "factor": 1.0}},
    "counters": {"generator": {"step": 3.0}, "discriminator": {"step": 3.0}},
    "starts": [{"step": 0, "world_size": 1, "engine": "single"}],
}  # fmt: skip
START = {
    "event": "start", "step": 0, "time": "2026-11-28T10:00:00+00:00", "world_size": 1, "nodes": 1, "devices": {"CPU": 1},
    "launcher": "none", "engine": "single", "engine_discriminator": None, "precision": "fp32",
    "activation_checkpointing": "memory plan fast", "compile": "off", "global_batch": 2, "micro_batch": 2,
    "micro_batches_per_step": 1, "epochs": 2, "train_samples": 5, "val_samples": 1, "image_size": 32,
    "parameters": {"generator": 10}, "versions": {"torch": "2.14.1"},
}  # fmt: skip


def a_save(folder: Path) -> Case:
    """Sealed again after the change, as a forger would, in half of the cases (`seal`)."""
    tensors = {"generator/param/weight": torch.randn(4, 3), "generator/buffer/none": torch.empty(0, 3)}
    pieces = [Fragment.whole(name, tensor) for name, tensor in tensors.items()]
    made = save(folder, step_name(3), pieces, STATE, to_yaml(TrainConfig()))

    def read() -> None:
        verify(made, alone=True)
        opened = open_newest(folder, usable=lambda found: Progress.of(found.state))
        assert opened is not None
        from_yaml(opened.config_yaml, "config.yaml")
        with opened:
            opened.read()

    names = {"manifest.json": "json", "tensors.json": "json", "state.json": "json", "config.yaml": "bytes"}
    return read, {made / name: kind for name, kind in names.items()}


def an_export(folder: Path) -> Case:
    path = folder / "m.safetensors"
    write_tensor_file(
        path, TensorFile("inference", {"a.weight": torch.randn(3, 2)}, "model: {}\n", {"step": 1})
    )
    return partial(read_tensor_file, path), {path: "bytes"}


def upstreams(folder: Path) -> Case:
    path = folder / "best.pth"
    torch.save({"epoch": 3, "generator_state_dict": {"a.weight": torch.randn(2, 2)}, "config": {}}, path)
    return partial(read_pth, path), {path: "bytes"}


def a_configuration(folder: Path) -> Case:
    path = folder / "config.yaml"
    path.write_text(to_yaml(TrainConfig()))
    return lambda: from_yaml(path.read_text(encoding="utf-8", errors="replace"), "here"), {path: "bytes"}


def logs(folder: Path) -> Case:
    """Read, and told as on a page."""

    def read() -> None:
        run = read_run(folder)
        for part in (state, summary, tiles, history_table, charts, marks):
            part(run)

    (folder / "config.yaml").write_text(to_yaml(TrainConfig()))
    for step in (1, 2):
        run_log(folder, LOGS[0]).append(
            {"step": step, "epoch": 1, "samples": 2, "train/G_loss": 0.5, "val/loss": "nan"}
        )
    run_log(folder, LOGS[1]).append(START)
    run_log(folder, LOGS[1]).append({"event": "end", "step": 2, "time": START["time"], "how": "finished"})
    return read, {folder / LOGS[0]: "lines", folder / LOGS[1]: "lines"}


def other_logs(folder: Path) -> Case:
    for log in LOGS[2:]:
        run_log(folder, log).append({"step": 1, "samples": {"clean": ["a"]}, "save": {"held_s": 0.1}})
    return lambda: [run_log(folder, log).read() for log in LOGS[2:]], {
        folder / log: "lines" for log in LOGS[2:]
    }


def a_lock(folder: Path) -> Case:
    record = {"id": "a", "host": "there", "machine": "b", "pid": 1, "since": START["time"], "beat": 1}
    found = folder / "record"
    found.write_text(json.dumps(record).ljust(RECORD_BYTES))

    def read() -> None:
        shutil.copy(found, folder / LOCK_FILE)
        with RunLock(folder, beat_seconds=0.001):
            pass

    return read, {found: "json"}


def deepspeeds(folder: Path) -> Case:
    path = folder / "zero.json"
    shutil.copy(shipped()["zero3_offload"], path)
    how = {
        "global_batch": 4,
        "micro_batch": 2,
        "accumulation": 1,
        "world_size": 2,
        "clip": 1.0,
        "precision": "bf16",
    }
    return lambda: resolve(str(path), **how), {path: "json"}


def networks_of_upstream(folder: Path) -> Case:
    """What a `.pth` holds once it is read, by name and shape."""
    path = folder / "theirs.json"
    parts = {"generator": upstream.generator_state(), "discriminator": upstream.discriminator_state()}
    shapes = {
        part: {name: list(value.shape) for name, value in state.items()} for part, state in parts.items()
    }
    chosen = {
        "encoder_stride": 1,
        "transformer_num_heads": upstream.HEADS,
        "discriminator_type": "configurable",
    }
    settings = {
        "model": chosen,
        "data": {"image_size": [64, 64]},
        "optimizer": {"g_lr": 3e-4, "g_betas": [0.5, 0.9]},
    }
    path.write_text(json.dumps({**shapes, "settings": settings}))

    def read() -> None:
        content = json.loads(path.read_text())
        states = [
            {
                name: torch.empty(shape if sized(shape) else [], dtype=kind_of(name), device="meta")
                for name, shape in state.items()
            }
            for state in (content.get("generator"), content.get("discriminator"))
            if isinstance(state, dict)
        ]
        settings = content.get("settings")
        found = UpstreamFile(
            states[0] if states else {}, states[1] if len(states) > 1 else None,
            settings if isinstance(settings, dict) else {}, None, 3,
        )  # fmt: skip
        converted(config_of(found, "theirs"), found, "theirs")

    def sized(shape: object) -> bool:
        return isinstance(shape, list) and all(type(side) is int and 0 <= side < 1 << 40 for side in shape)

    return read, {path: "values"}


def kind_of(name: str) -> torch.dtype:
    """Return the type of a tensor in torch's own state of a network, by its name."""
    return torch.int64 if name.endswith("num_batches_tracked") else torch.float32


CASES = [
    a_save, an_export, upstreams, networks_of_upstream, a_configuration, deepspeeds, logs, other_logs, a_lock,
]  # fmt: skip


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_changed_files_are_refused_or_read(tmp_path, make):
    fuzz(tmp_path, make, FEW)


@pytest.mark.drill
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_thousands_of_changed_files(tmp_path, make):
    fuzz(tmp_path, make, MANY)
