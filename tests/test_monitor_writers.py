"""The run's log, read back: JSON lines, TensorBoard's own reader, a W&B offline run file."""

import json
import os
import struct
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neuropbr_dist.errors import UserError
from neuropbr_dist.monitor import RunLog

STRIPES = np.tile(np.arange(16, dtype=np.uint8)[None, :, None] * 16, (12, 1, 3))


def open_log(folder, **changes):
    return RunLog(folder, **{"tensorboard": False, "wandb": None, "enabled": True} | changes)


def json_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder):
    accumulator = EventAccumulator(str(folder / "logs"), size_guidance={"images": 0, "scalars": 0})
    return accumulator.Reload()


def test_scalars_reach_json_lines_and_tensorboard(tmp_path):
    log = open_log(tmp_path, tensorboard=True)
    log.scalars(10, 1, 80, {"train/G_loss": 0.5, "train/lr": 1e-4})
    log.scalars(20, 2, 160, {"train/G_loss": 0.25, "val/psnr": 31.5})
    log.close()
    assert json_lines(tmp_path) == [
        {"step": 10, "epoch": 1, "samples": 80, "train/G_loss": 0.5, "train/lr": 1e-4},
        {"step": 20, "epoch": 2, "samples": 160, "train/G_loss": 0.25, "val/psnr": 31.5},
    ]
    board = events(tmp_path)
    assert [(e.step, e.value) for e in board.Scalars("train/G_loss")] == [(10, 0.5), (20, 0.25)]
    assert [(e.step, e.value) for e in board.Scalars("val/psnr")] == [(20, 31.5)]


def test_not_a_number_stays_valid_json_that_float_reads(tmp_path):
    log = open_log(tmp_path)
    values = {"a": float("nan"), "b": float("inf"), "c": -np.float32("inf"), "d": 1.0}
    log.scalars(1, 0, 1, values)
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert {name: float(line[name]) for name in values} == pytest.approx(values, nan_ok=True)
    assert line["a"] == "nan"


def test_pictures_and_texts_come_back_from_tensorboard(tmp_path):
    log = open_log(tmp_path, tensorboard=True)
    log.images(3, {"val/comparison": STRIPES, "val/roughness": STRIPES[:, :, 0]})
    log.text(0, {"config": "epochs: 3"})
    log.close()
    board = events(tmp_path)
    for name in ("val/comparison", "val/roughness"):
        (image,) = board.Images(name)
        assert (image.step, image.width, image.height) == (3, 16, 12)
    (text,) = board.Tensors("config/text_summary")
    assert text.tensor_proto.string_val == [b"epochs: 3"]


def test_a_resumed_run_cuts_its_logs_back_to_the_save(tmp_path):
    first = open_log(tmp_path, tensorboard=True)
    for step in range(1, 7):
        first.scalars(step, 0, 4 * step, {"train/G_loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "epo')  # killed in the middle of a write

    resumed = open_log(tmp_path, tensorboard=True)
    resumed.cut_back(4)
    resumed.scalars(5, 0, 20, {"train/G_loss": 50.0})
    resumed.close()

    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0)]
    assert [(line["step"], line["train/G_loss"]) for line in json_lines(tmp_path)] == expected
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("train/G_loss")] == expected
    assert not (tmp_path / "metrics.jsonl.tmp").exists()


def test_cut_back_of_a_run_without_a_log_is_fine(tmp_path):
    log = open_log(tmp_path)
    log.cut_back(3)
    log.scalars(4, 0, 4, {"a": 1.0})
    assert [line["step"] for line in json_lines(tmp_path)] == [4]


def test_other_ranks_write_nothing(tmp_path):
    log = open_log(tmp_path / "run", tensorboard=True, wandb={"project": "p"}, enabled=False)
    log.scalars(1, 0, 1, {"a": 1.0})
    log.images(1, {"a": STRIPES})
    log.text(1, {"a": "b"})
    log.cut_back(0)
    log.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("module", "options", "field"),
    [
        ("wandb", {"wandb": {"project": "p"}}, r"training\.use_wandb"),
        ("torch.utils.tensorboard", {"tensorboard": True}, r"training\.use_tensorboard"),
    ],
)
def test_a_missing_package_names_the_field(tmp_path, monkeypatch, module, options, field):
    monkeypatch.setitem(sys.modules, module, None)  # makes the import fail
    with pytest.raises(UserError, match=field):
        open_log(tmp_path, **options)


# --- Weights & Biases, offline


def run_records(file):
    """Records of a `.wandb` file: a LevelDB log of protobuf messages in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, at, record = file.read_bytes(), 7, b""  # after the file's own 7-byte header
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a header never straddles blocks
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def test_wandb_offline_holds_values_pictures_and_one_id_over_a_resume(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    settings = {"project": "neuropbr-test", "name": "trial", "config": {"seed": 42}}
    first = open_log(tmp_path, wandb=settings)
    first.scalars(10, 1, 80, {"train/G_loss": 0.5})
    first.images(10, {"val/comparison": STRIPES})
    first.text(0, {"config": "a < b"})
    first.close()
    resumed = open_log(tmp_path, wandb=settings)
    resumed.cut_back(10)
    resumed.scalars(11, 1, 88, {"train/G_loss": 0.25})
    resumed.close()
    wandb.teardown()  # waits for W&B's own process, as the end of a run's process does

    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    records = [record for file in files for record in run_records(file)]
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    losses = sorted(
        (row["step"], row["samples"], row["train/G_loss"]) for row in rows if "train/G_loss" in row
    )
    assert losses == [(10, 80, 0.5), (11, 88, 0.25)]
    assert [row["step"] for row in rows if "val/comparison/path" in row] == [10]
    assert [row["step"] for row in rows if "config/path" in row] == [0]
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/val/comparison*.png"))) == 1
    runs = [record.run for record in records if record.HasField("run")]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {
        ((tmp_path / "wandb_id").read_text().strip(), "neuropbr-test", "trial")
    }


@pytest.mark.parametrize("name", ["looks", "metrics.jsonl", "timings.jsonl"])
def test_what_stands_in_a_logs_place_is_told_at_the_start(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: not a"):
        RunLog(tmp_path, tensorboard=False, wandb=None, enabled=True)
