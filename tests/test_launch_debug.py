"""launch/train.py --debug: look at one batch, overfit it."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.support.train_runs import command, run, tiny_set

SMALL = {"data__image_size": 32}


@pytest.fixture(scope="module")
def debugged(tmp_path_factory):
    """(folder, what was printed): steps on a batch of two."""
    folder = tmp_path_factory.mktemp("debug") / "run"
    ended = run(folder, "--debug", **SMALL)
    assert ended.code == 0, ended.err
    return folder, ended.out


def losses(said):
    return re.findall(r"^step .*", said, re.MULTILINE)


def test_it_says_what_it_turned_off(tmp_path, debugged):
    assert "debug: training.compile = off (was auto)" in debugged[1]
    assert "debug: training.precision = fp32 (was auto)" in debugged[1]


def test_table_of_modules(debugged):
    tables = re.split(r"^(?=generator$|discriminator$)", debugged[1], flags=re.MULTILINE)[1:]
    assert [table.split("\n")[0] for table in tables] == ["generator", "discriminator"]
    for table, output in zip(tables, ("(2, 8, 32, 32)", "(2, 1, "), strict=True):
        head, *rows = [line for line in table.splitlines()[1:] if line and not line.startswith("step")]
        rows = rows[: [row.split()[0] for row in rows].index("whole") + 1]
        assert head.split()[:2] == ["module", "output"]
        whole = next(row for row in rows if row.startswith("whole"))
        assert output in whole
        count = [int(row.replace(",", "").split()[-4]) for row in rows]
        *segments, total = count
        assert sum(segments) == total
    names = {line.split()[0] for line in tables[0].splitlines() if line}
    assert {"fusion.blocks.0", "decoder.project", "decoder.heads"} <= names


def test_both_pictures(debugged):
    folder = debugged[0] / "debug"
    before, after = (np.asarray(Image.open(folder / name)) for name in ("first_batch.png", "after.png"))
    assert before.shape == after.shape and before.shape[-1] == 3
    assert (before != after).any()
    assert str(folder / "first_batch.png") in debugged[1] and str(folder / "after.png") in debugged[1]


def test_the_loss_fell(debugged):
    found = re.search(r"The loss fell: ([\d.]+) -> ([\d.]+) in (\d+) steps", debugged[1])
    assert float(found[2]) < float(found[1])
    steps = losses(debugged[1])
    assert len(steps) == int(found[3]) + 1
    assert f"G_loss {found[1]}" in steps[0] and f"G_loss {found[2]}" in steps[-2]
    assert "D_loss" in steps[-1] and not any("D_loss" in step for step in steps[:-1])


def test_two_runs_print_the_same_losses_and_any_engine_is_set_aside(debugged, tmp_path):
    ended = run(tmp_path, "--debug", "--ds", "ds_configs/zero2.json", **SMALL)
    assert ended.code == 0, ended.err
    assert "debug: training.ds_config = None (was zero2)" in ended.out
    assert losses(ended.out) == losses(debugged[1])


def test_it_leaves_no_run_behind(debugged):
    names = {path.name for path in debugged[0].iterdir()}
    assert "debug" in names and not names & {"metrics.jsonl", "config.yaml", "latest", "run.lock"}


def test_a_loss_that_does_not_fall_is_said(tmp_path):
    ended = run(tmp_path, "--debug", "--stop-after-steps", "2", optimizer__g_lr=1e-30, **SMALL)
    assert "The loss DID NOT FALL" in ended.out
    assert ended.code != 0 and "one batch can't be overfitted" in ended.err


def test_a_launcher_is_refused(tmp_path):
    ended = run(tmp_path, "--debug", world=2)
    assert ended.code != 0 and "--debug is for one process" in ended.err


def test_pictures_are_made_small_enough_for_a_cpu(tmp_path):
    """Built-in materials of a set size would be 2048 px."""
    renders, maps = tiny_set()
    ended = command(
        "--debug", "--config", "demo", "--device", "cpu", "--checkpoint-dir", tmp_path,
        "--input-dir", renders, "--output-dir", maps, "--set", "data.image_size=null",
        "--set", "model.encoder_channels=[8, 16, 16]", "--set", "model.transformer_dim=16",
        "--set", "model.discriminator_ndf=4", "--set", "model.transformer_depth=1",
        "--stop-after-steps", "2",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    size = int(re.search(r"debug: data.image_size = (\d+) \(was None\)", ended.out)[1])
    assert size <= 128 and f"{size} px" in ended.out


def test_a_discriminator_that_sees_the_views_and_whose_features_are_matched(tmp_path):
    ended = command(
        "--debug", "--config", "demo", "--device", "cpu", "--checkpoint-dir", tmp_path,
        "--set", "data.builtin_count=4", "--set", "data.image_size=32",
        "--set", "model.encoder_channels=[8, 16, 16]", "--set", "model.transformer_dim=16",
        "--set", "model.discriminator_ndf=4", "--set", "model.transformer_depth=1",
        "--set", "model.discriminator_input=maps_and_views", "--set", "model.discriminator_norm=spectral",
        "--set", "loss.w_feature_matching=1", "--stop-after-steps", "2",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert re.search(r"^step +3 .*D_loss .*G_feature_matching", ended.out, re.MULTILINE), ended.out
