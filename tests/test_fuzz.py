"""Files from outside, changed in every way: an answer or a `UserError`, soon; no other exception, and nothing outside."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from neuropbr_dist.checkpoint import Fragment, open_newest, save, step_name, verify
from neuropbr_dist.checkpoint.tensor_file import TensorFile, read_tensor_file, write_tensor_file
from neuropbr_dist.config import TrainConfig, from_yaml, to_yaml
from neuropbr_dist.data.cameras import read_cameras
from neuropbr_dist.data.files.decode import read_picture
from neuropbr_dist.data.files.layout import read_metadata
from neuropbr_dist.data.packed.index import HEAD, head_checksum
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.packed.source import PackedSource
from neuropbr_dist.data.split import read_split
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference.upstream_file import read_pth
from neuropbr_dist.monitor.run_logs import LOGS, run_log
from neuropbr_dist.report.curves import charts, marks
from neuropbr_dist.report.folder import read_run
from neuropbr_dist.report.text import history_table, state, summary, tiles
from neuropbr_dist.training.state import Progress
from tests.support.material_files import write_cameras_of, write_set
from tests.support.mutations import answering, mutated_bytes, mutated_json

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("nothing_on_the_console")]
FEW, MANY = 40, 1000
SECONDS = 10.0
Case = tuple[Callable[[], object], dict[Path, str]]
"""What reads the files, and the files to change, each as `json` or `bytes`."""
STATE = {
    "step": 3, "cursor": 6, "best": 0.5, "skipped": {"generator": 0, "discriminator": 0}, "global_batch": 2,
    "data": "abc", "plateau": {"generator": {"best": 0.5, "waited": 0, "factor": 1.0}},
    "counters": {"generator": {"step": 3.0}, "discriminator": {"step": 3.0}},
    "lives": [{"step": 0, "world_size": 1, "engine": "single"}],
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


def seal(path: Path, rng: random.Random) -> None:
    """Recompute the sums of a save or a packed set around a changed file, mostly, so that the change is read."""
    manifest, head = path.with_name("manifest.json"), path.with_name(HEAD)
    try:
        if manifest.exists():
            content = json.loads(manifest.read_text())
            if path != manifest:
                record = {
                    "bytes": path.stat().st_size,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
                content["files"][path.name] = record
            content.pop("sha256", None)
            own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            manifest.write_text(json.dumps({**content, "sha256": own}))
        elif head.exists():
            content = json.loads(head.read_text())
            if path != head:
                content["index"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            content.pop("checksum", None)
            head.write_text(json.dumps({**content, "checksum": head_checksum(content)}))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        pass  # the change left nothing to seal


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


def a_packed_set(folder: Path) -> Case:
    renders, maps = write_set(folder / "set", {"a": "wood", "b": "stone"}, size=16)
    assert pack(renders, maps, folder / "packed", progress=False).clean

    def read() -> None:
        source = PackedSource(folder / "packed", 0)
        source.check_shards()
        for entry in source.entries:
            source.load(entry)

    index = {folder / "packed" / f"{name}.npy": "bytes" for name in ("samples", "materials", "records")}
    return read, {folder / "packed" / HEAD: "json", **index}


def a_set(folder: Path) -> Case:
    names = {"a": "wood", "b": "stone"}
    renders, _ = write_set(folder, names, size=16)
    write_cameras_of(renders, list(names))
    (folder / "split.json").write_text('{"validation": ["wood"]}')

    def read() -> None:
        for call in (
            partial(read_cameras, renders / "cameras.json", list(names)),
            partial(read_metadata, renders / "render_metadata.json"),
            partial(read_split, folder, ["wood", "stone"]),
            partial(read_picture, renders / "clean/a/0.png", "view"),
        ):
            refused(call)

    files = {
        renders / "cameras.json": "json",
        renders / "render_metadata.json": "json",
        folder / "split.json": "json",
    }
    return read, {**files, renders / "clean/a/0.png": "bytes"}


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


CASES = [a_save, an_export, upstreams, a_packed_set, a_set, a_configuration, logs]


def refused(call: Callable[[], object]) -> None:
    try:
        call()
    except UserError as error:
        assert str(error) and len(str(error)) < 4000


def change(path: Path, kind: str, rng: random.Random) -> None:
    content = path.read_bytes()
    if kind == "bytes" or rng.random() < 0.2:
        path.write_bytes(mutated_bytes(content, rng))
    elif kind == "json":
        path.write_text(mutated_json(json.loads(content), rng))
    else:
        lines = content.decode().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = mutated_json(json.loads(lines[at]), rng)
        path.write_text("\n".join(lines) + "\n")


def fuzz(tmp_path: Path, make: Callable[[Path], Case], times: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    read, files = make(home)
    read()  # as it is, it is good
    sound = tmp_path / "sound"
    shutil.copytree(home, sound, symlinks=True)
    for seed in range(times):
        rng = random.Random(f"{make.__name__} {seed}")
        path = rng.choice(list(files))
        change(path, files[path], rng)
        if rng.random() < 0.8:
            seal(path, rng)
        try:
            with answering(SECONDS):
                refused(read)
        except BaseException as error:
            error.add_note(f"{make.__name__} {seed}: {path.name}") if hasattr(error, "add_note") else None
            raise
        shutil.rmtree(home)
        shutil.copytree(sound, home, symlinks=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "sound"]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_changed_files_are_refused_or_read(tmp_path, make):
    fuzz(tmp_path, make, FEW)


@pytest.mark.drill
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_thousands_of_changed_files(tmp_path, make):
    fuzz(tmp_path, make, MANY)
