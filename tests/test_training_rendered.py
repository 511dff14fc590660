"""Runs on maps alone: the same whatever stops them or cuts their batches, and told apart from all others."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
import yaml

from neuropbr_dist.commands.infer import run as infer
from neuropbr_dist.errors import UserError
from tests.support.train_runs import (
    SETTINGS,
    SINGLE_PROCESS_SAVES,
    assert_same_metrics,
    assert_same_run,
    command,
    logged_samples,
    resume,
    times_seen,
    tiny_set,
)

pytestmark = SINGLE_PROCESS_SAVES

ONLINE = {
    "data.image_size": 16,
    "data.renders_per_epoch": 2,
    "data.mixtures": 0.5,
    "data.crop": 0.5,
    "data.tint": 0.2,
    "data.roughness_shift": 0.1,
    "data.relief": 0.5,
    "data.other_relief": 0.3,
    "data.any_roughness": 0.4,
    "data.augment_rotations": True,
    "model.discriminator_n_layers": 1,
    "optimizer.eps": 1e-3,
    "optimizer.g_lr": 2e-4,
    "training.epochs": 2,
    "training.gan_start_epoch": 2,
    "training.batch_size": 2,
    "training.global_batch_size": 4,
    "training.log_samples": True,
    "training.seed": 1,  # See `FOUR`.
}
"""Five materials to train on, each twice an epoch: ten samples in batches of four, five steps; one ends epoch 1."""


def words(folder, **settings):
    fields = SETTINGS | ONLINE | {name.replace("__", "."): value for name, value in settings.items()}
    sets = [word for name, value in fields.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    return ["--materials", str(tiny_set()[1]), "--checkpoint-dir", str(folder), "--device", "cpu", *sets]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one go, and what it said. Not to be written to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = command(*words(folder))
    assert ended.code == 0, ended.err
    return folder, ended.out


def test_the_source_is_named_in_full(whole):
    folder, said = whole
    source = f"rendered online from 6 materials of {tiny_set()[1]} × 2 repeats, clean"
    assert f"Source: {source}\n" in said and "built-in" not in said
    assert json.loads((folder / "history.jsonl").read_text().splitlines()[0])["source"] == source
    data = yaml.safe_load((folder / "config.yaml").read_text())["data"]
    assert (data["render"], data["renders_per_epoch"], data["materials_dir"]) == (
        "online",
        2,
        str(tiny_set()[1]),
    )


def test_every_repeat_once_an_epoch(whole):
    seen = times_seen(whole[0])
    assert list(seen) == ["1", "2"] and seen["1"] == seen["2"] and set(seen["1"].values()) == {1}
    materials = Counter(key.partition("/")[2].partition("#")[0] for key in seen["1"])
    assert len(seen["1"]) == 10 and set(materials.values()) == {2}


def test_resumed_amid_an_epoch_it_is_the_same_to_the_bit(whole, tmp_path):
    assert command(*words(tmp_path), "--stop-after-steps", "2").code == 0
    ended = resume(tmp_path)
    assert ended.code == 0, ended.err
    assert_same_run(whole[0], tmp_path)
    assert logged_samples(tmp_path) == logged_samples(whole[0])


def test_micro_batches_and_loader_processes_do_not_matter(whole, tmp_path):
    assert command(*words(tmp_path, training__batch_size=1, data__num_workers=2)).code == 0
    assert_same_metrics(whole[0], tmp_path)


def test_inference_renders_each_material_once_wherever_it_lies_now(whole, tmp_path, capsys):
    def inferred(*words):
        infer(
            ["--checkpoint", str(whole[0]), "--out-dir", str(tmp_path), "--device", "cpu", "--debug", *words]
        )
        return capsys.readouterr().out

    (tmp_path / "moved").symlink_to(tiny_set()[1])
    said = inferred("--sample-idx", "0", "--split", "val")
    held = re.search(r"Sample 0 of 1 in \S+: clean/(material_\d)#000, material_\d \(val side\), 16 px", said)
    assert held and (tmp_path / "view_2.png").is_file() and "normal angle" in said
    said = inferred("--sample", f"{held[1]}#000", "--materials", str(tmp_path / "moved"))
    assert re.search(rf"Sample \d of 6 in {tmp_path / 'moved'}: clean/{held[1]}#000", said)
    with pytest.raises(UserError, match="say by --materials where the folder of materials lies now"):
        inferred("--materials", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="name no other beside it"):
        inferred("--materials", "m", "--data", "p")


@pytest.mark.multiprocess
def test_three_ranks_and_another_engine_train_the_same(whole, tmp_path):
    """One rank gets two samples, two get one and filler."""
    ended = command(*words(tmp_path), "--engine", "fsdp", world=3)
    assert ended.code == 0, ended.err
    assert_same_metrics(whole[0], tmp_path)


def test_views_stay_unrectified_where_asked_and_other_repeats_are_another_data_set(tmp_path):
    ended = command(*words(tmp_path, model__align="none"), "--stop-after-steps", "1")
    assert ended.code == 0, ended.err
    assert "Views stay as they are (model.align = none), though 12 of 12 samples have cameras" in ended.out
    ended = resume(tmp_path, "--set", "data.renders_per_epoch=3")
    assert ended.code == 2 and "another data set" in ended.err
