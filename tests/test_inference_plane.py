"""Inference, tiles and programs of a generator that rectifies views by their cameras."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neuropbr_dist.checkpoint import open_newest
from neuropbr_dist.commands.export import run as export
from neuropbr_dist.commands.infer import run as infer
from neuropbr_dist.config import MATERIAL_CHANGES, DataConfig, as_saved, from_yaml
from neuropbr_dist.data.builtin.cache import sample_cameras
from neuropbr_dist.data.cameras import read_cameras
from neuropbr_dist.data.files.decode import read_views
from neuropbr_dist.data.files.layout import scan
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference import load_generator, predict
from neuropbr_dist.inference.program import export_program
from neuropbr_dist.inference.samples import SetPlace
from neuropbr_dist.inference.upstream import to_upstream
from neuropbr_dist.materials.rectify import rectify
from neuropbr_dist.models import Generator
from tests.support.material_files import write_set
from tests.support.on_gpus import exact_convolutions
from tests.support.train_runs import SINGLE_PROCESS_SAVES, SIZE, tiny_set, whole_run

pytestmark = [SINGLE_PROCESS_SAVES, pytest.mark.multiprocess]


def infer_to(out: Path, *words: object) -> None:
    infer(["--out-dir", str(out), "--device", "cpu", "--debug", *map(str, words)])


def sample(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views (3, 3, S, S) uint8 and cameras (3, 14) of a sample of the tiny set."""
    entry = scan(*tiny_set())[index]
    return torch.from_numpy(read_views(entry).copy()), torch.from_numpy(entry.cameras)


def by_hand(views: torch.Tensor, cameras: torch.Tensor) -> torch.Tensor:
    """What the run's plain generator says of rectified views."""
    opened = open_newest(whole_run())
    assert opened is not None
    with opened:
        config = as_saved(from_yaml(opened.config_yaml, ""))
        stored = opened.read("generator/param/")
    assert config.model.align == "plane"
    generator = Generator(config.model).eval()
    generator.load_state_dict({name.removeprefix("generator/param/"): t for name, t in stored.items()})
    mean, std = (torch.tensor(stat)[:, None, None] for stat in (config.transform.mean, config.transform.std))
    with torch.no_grad():
        return generator(rectify((views[None] / 255 - mean) / std, cameras[None], views.shape[-1]))[0]


def test_a_sample_as_its_generator_says(tmp_path, capsys):
    infer_to(tmp_path, "--checkpoint", whole_run(), "--sample-idx", 1)
    views, cameras = sample(1)
    expected = by_hand(views, cameras)
    model = load_generator(whole_run())
    torch.testing.assert_close(predict(model, views, cameras), expected, atol=1e-6, rtol=0)
    roughness = np.asarray(Image.open(tmp_path / "roughness.png")).astype(float)
    assert np.abs(roughness - expected[3].numpy() * 255).max() <= 0.51
    # What is shown is what the network saw: black where a view is missing, or doesn't show the place.
    missing = ~cameras.any(-1)
    seen = [np.asarray(Image.open(tmp_path / f"view_{i}.png")).any() for i in range(3)]
    assert missing.sum() == 2 and seen == (~missing).tolist()


def test_cameras_are_asked_for():
    views, _ = sample(0)
    with pytest.raises(UserError, match="rectifies views by their cameras"):
        predict(load_generator(whole_run()), views)


def test_every_sample_but_those_without_cameras(tmp_path, capsys):
    shutil.copytree(tiny_set()[0], tmp_path / "input")
    path = tmp_path / "input" / "cameras.json"
    content = json.loads(path.read_text())
    content["samples"]["sample_0002"]["clean"] = [None] * 3
    path.write_text(json.dumps(content))
    words = [
        "--checkpoint",
        whole_run(),
        "--data-input-dir",
        tmp_path / "input",
        "--data-output-dir",
        tiny_set()[1],
    ]
    infer_to(tmp_path / "out", *words, "--sample-idx", "all", "--batch-size", 2)
    said = capsys.readouterr().out
    assert (
        "clean/sample_0002: left out, none of its views has a camera" in said and "Mean of 5 samples" in said
    )
    assert len(list((tmp_path / "out" / "clean").iterdir())) == 5
    with pytest.raises(UserError, match=r"clean/sample_0002: none of its views has a camera .*cameras\.json"):
        infer_to(tmp_path / "out", *words, "--sample-idx", 2)


def test_own_renders_with_their_cameras(tmp_path, capsys):
    renders = tmp_path / "mine"
    for i in range(2):
        shutil.copytree(tiny_set()[0] / "clean" / f"sample_000{i}", renders / f"sample_000{i}")
    with pytest.raises(
        UserError, match=r"0\.png: 32 x 32 px; a photo has 64 px or more"
    ):  # no cameras: photos
        infer_to(tmp_path / "out", "--checkpoint", whole_run(), "--input-dir", renders)
    content = json.loads((tiny_set()[0] / "cameras.json").read_text())
    named = content["samples"]
    content["samples"] = {"sample_0000": named["sample_0000"]}
    (renders / "cameras.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="sample_0001: no view has a camera"):
        infer_to(tmp_path / "out", "--checkpoint", whole_run(), "--input-dir", renders)
    content["samples"] = named  # of the whole set, as it lies beside a part of it
    (renders / "cameras.json").write_text(json.dumps(content))
    infer_to(tmp_path / "out", "--checkpoint", whole_run(), "--input-dir", renders)
    expected = by_hand(*sample(1))
    metallic = np.asarray(Image.open(tmp_path / "out" / "sample_0001" / "metallic.png")).astype(float)
    assert np.abs(metallic - expected[4].numpy() * 255).max() <= 0.51


def test_tiles_see_what_the_whole_sees():
    """Bands of the rectified picture, put together, are the whole; and tiles of the whole are cut from it."""
    model = load_generator(whole_run())
    views = torch.randint(
        0, 256, (3, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    cameras = torch.from_numpy(sample_cameras(0, 5).encoded("clean"))
    bands = [model.prepare(views[None], cameras[None], (top, top + 48)) for top in (0, 48)]
    assert torch.equal(torch.cat(bands, dim=-2), model.prepare(views[None], cameras[None]))
    whole, tiled = predict(model, views, cameras), predict(model, views, cameras, tile=48, overlap=40)
    assert whole.shape == tiled.shape == (8, 96, 96) and (whole - tiled).abs().mean() < 0.1
    torch.testing.assert_close(tiled[5:].norm(dim=0), torch.ones(96, 96))


def test_stored_views_after_a_training_on_rendered_ones(tmp_path):
    """What changes and lights rendered samples is training's; a set with its own views takes them as they are."""
    renders, maps = write_set(tmp_path, {"sample_0000": "wood"}, size=16)
    trained = DataConfig(
        builtin=True, render="online", renders_per_epoch=3, environments_dir=str(tmp_path),
        crop=0.3, tint=0.2, roughness_shift=0.1, any_roughness=0.5, relief=0.5, other_relief=0.3, mixtures=0.3,
    )  # fmt: skip
    found = SetPlace(input_dir=str(renders), output_dir=str(maps)).of(trained)
    assert found.render == "stored" and found.renders_per_epoch is None and found.environments_dir is None
    assert {getattr(found, change) for change in MATERIAL_CHANGES} == {0.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_outputs_are_those_of_the_cpu():
    model, (views, cameras) = load_generator(whole_run()), sample(0)
    on_cpu = predict(model, views, cameras)
    with exact_convolutions():
        on_gpu = predict(model.cuda(), views, cameras, precision="fp32")
    assert (on_gpu - on_cpu).abs().max() < 1e-4


@pytest.mark.drill
def test_a_program_takes_the_cameras_numbers(tmp_path):
    program = torch.export.load(export_program(whole_run(), tmp_path / "model.pt2", SIZE)).module()
    found = read_cameras(tiny_set()[0] / "cameras.json")
    for index in range(2):  # of a plane that repeats, and of one that doesn't
        views, cameras = sample(index)
        named = found.samples[f"sample_{index:04d}"]
        map_to_view, eye = torch.zeros(1, 3, 3, 3), torch.zeros(1, 3, 3)
        for i, camera in enumerate(named.of("clean")):
            if camera is not None:
                map_to_view[0, i], eye[0, i] = (
                    torch.from_numpy(camera.map_to_view),
                    torch.from_numpy(camera.eye),
                )
        maps = program(views[None], map_to_view, eye, torch.tensor([named.wrap]))
        torch.testing.assert_close(maps[0], by_hand(views, cameras), atol=1e-4, rtol=0)
    assert maps.shape == (1, 8, SIZE, SIZE)


def test_exports(tmp_path):
    export(["inference", str(whole_run()), str(tmp_path / "model.safetensors")])
    views, cameras = sample(3)
    again = predict(load_generator(tmp_path / "model.safetensors"), views, cameras)
    torch.testing.assert_close(again, by_hand(views, cameras), atol=1e-6, rtol=0)
    with pytest.raises(UserError, match=r"model\.align = plane \(there: none\)"):
        to_upstream(whole_run(), tmp_path / "back.pth")
