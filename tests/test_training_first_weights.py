"""`--init-from`: weights of another run, and nothing else of it."""

import json
import shutil

import numpy as np
import pytest
import torch

from neuropbr_dist.checkpoint import open_newest
from neuropbr_dist.config import TrainConfig, with_fields
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference import consolidate, export_inference, load_generator
from neuropbr_dist.models import Discriminator, Generator
from neuropbr_dist.training.first_weights import FirstWeights
from tests.support.damage import rewrite_manifest
from tests.support.tiny import MODEL
from tests.support.train_runs import (
    SINGLE_PROCESS_SAVES,
    command,
    metrics,
    run,
    state,
    tensors,
    tiny_words,
    whole_run,
)

pytestmark = SINGLE_PROCESS_SAVES


def config(first: FirstWeights, **model: object) -> TrainConfig:
    """A fresh run's configuration that leaves open what it can, settled with the weights."""
    fresh = with_fields(TrainConfig(), model={**MODEL, "align": "plane", **model})
    return first.followed(fresh)


def test_a_new_run_begins_where_the_other_ended(tmp_path):
    """The last validation of one is the first of the other, which has a schedule, moments and a seed of its own."""
    other = whole_run()
    ended = run(
        tmp_path / "run", "--init-from", str(other), "--stop-after-steps", "1", training__gan_start_epoch=1
    )
    assert ended.code == 0, ended.err
    assert (
        f"Starting from the weights of {other.resolve()}" in ended.out
        and "generator, discriminator" in ended.out
    )
    before = [line for line in metrics(other) if "val/loss" in line][-1]
    after = metrics(tmp_path / "run")[0]
    assert after["step"] == 0 and before["step"] > 0
    assert {k: v for k, v in after.items() if k.startswith("val/")} == {
        k: v for k, v in before.items() if k.startswith("val/")
    }
    assert state(tmp_path / "run")["counters"]["generator"]["step"] == 1
    history = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[0])
    assert str(other.resolve()) in history["init_from"]

    went_on = command("--resume", "auto", "--init-from", tmp_path / "gone", "--checkpoint-dir", tmp_path / "run",
                      "--stop-after-steps", "2")  # fmt: skip
    assert went_on.code == 0 and "Resuming from" in went_on.out and "Starting from" not in went_on.out


@pytest.mark.parametrize("kind", ["folder", "consolidated", "exported"])
def test_weights_are_taken_from_whatever_holds_them(tmp_path, kind):
    source = {
        "folder": lambda: whole_run(),
        "consolidated": lambda: consolidate(whole_run(), tmp_path / "all.safetensors"),
        "exported": lambda: export_inference(whole_run(), tmp_path / "out").parent,
    }[kind]()
    first = FirstWeights.read(source)
    cfg = config(first)
    first.check(cfg)
    generator = Generator(cfg.model)
    first.load("generator", generator)
    for name, value in load_generator(whole_run()).state_dict().items():
        assert torch.equal(generator.state_dict()[name], value), name
    discriminator = Discriminator(cfg.model)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    first.load("discriminator", discriminator)
    saved = tensors(whole_run())
    for name, value in discriminator.state_dict().items():
        wanted = before[name] if kind == "exported" else saved[f"discriminator/param/{name}"]
        assert torch.equal(value, wanted), name


def test_the_moving_average_is_taken_where_there_is_one(tmp_path):
    run(tmp_path / "run", "--stop-after-steps", "3", training__ema_decay=0.5)
    first = FirstWeights.read(tmp_path / "run")
    assert "moving average" in first.what
    saved = tensors(tmp_path / "run")
    average = {
        name.split("/", 2)[2]: value for name, value in saved.items() if name.startswith("generator/ema/")
    }
    assert average and all(
        torch.equal(first.networks["generator"][name], value) for name, value in average.items()
    )


def test_views_as_they_are_go_over_to_the_plane_and_not_back(tmp_path):
    run(tmp_path / "run", "--stop-after-steps", "2", model__align="none")
    first = FirstWeights.read(tmp_path / "run")
    cfg = config(first)
    first.check(cfg)
    assert (cfg.model.skip_merge, cfg.model.normals) == ("mean", "free")
    generator = Generator(cfg.model).eval()
    first.load("generator", generator)
    views = torch.rand(1, 3, 3, 16, 16)
    extra = torch.rand(1, 3, 4, 16, 16)
    extra[:, :, 0] = 1
    with torch.no_grad():
        expected = load_generator(tmp_path / "run")(views)
        torch.testing.assert_close(
            generator(torch.cat([views, extra], dim=2)), expected, rtol=1e-5, atol=1e-6
        )
    plane = FirstWeights.read(whole_run())
    with pytest.raises(UserError, match=r"model\.align = none \(saved: plane\)"):
        plane.check(config(plane, align="none"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("transformer_num_heads", 4), ("skip_merge", "max_mean_var"), ("discriminator_ndf", 8)],
)
def test_other_networks_are_refused_by_field(field, value):
    first = FirstWeights.read(whole_run())
    with pytest.raises(UserError, match=rf"--init-from .*model\.{field} = {value} \(saved: "):
        first.check(config(first, **{field: value}))


def test_without_its_discriminator_any_other_may_be_trained(tmp_path):
    first = FirstWeights.read(export_inference(whole_run(), tmp_path / "weights.safetensors"))
    first.check(config(first, discriminator_ndf=8))


def test_it_is_said_in_one_line_what_is_wrong(tmp_path):
    words = tiny_words()
    nothing = command(*words, "--checkpoint-dir", tmp_path / "run", "--init-from", tmp_path / "none")
    assert nothing.code == 2 and "no such checkpoint or folder" in nothing.err
    copy = tmp_path / "copy"
    shutil.copytree(whole_run(), copy, symlinks=True)
    save = open_newest(copy)
    for shard in save.path.glob("shard*"):
        shard.write_bytes(np.full(shard.stat().st_size // 4, np.nan, np.float32).tobytes())
    save.close()
    rewrite_manifest(save.path)
    black = command(*words, "--checkpoint-dir", tmp_path / "run", "--init-from", save.path)
    assert black.code == 2 and "are not finite" in black.err
    both = command("--checkpoint-dir", copy, "--resume", copy, "--init-from", whole_run())
    assert both.code == 2 and "a run that goes on has its own weights" in both.err
