"""Exported programs: one file that gives the generator's outputs with torch alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from neuropbr_dist.commands.export import run as export
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference import load_generator
from neuropbr_dist.inference.program import export_program
from neuropbr_dist.inference.upstream import from_upstream
from tests.support import upstream_stand_in as upstream
from tests.support.train_runs import SINGLE_PROCESS_SAVES
from tests.support.trained_run import SIZE, some_views, trained_run

pytestmark = SINGLE_PROCESS_SAVES
BOUND = 1e-3
ALONE = """
import sys, torch
maps = torch.export.load(sys.argv[1]).module()(torch.load(sys.argv[2], weights_only=True))
assert not any(name.startswith("neuropbr") for name in sys.modules)
torch.save(maps, sys.argv[3])
"""


def difference(program, model, views):
    return float((torch.export.load(program).module()(views) - model(views)).abs().max())


@pytest.mark.drill
@pytest.mark.parametrize("stride", [1, 2])
def test_resnet_and_attention(tmp_path, monkeypatch, stride):
    content = upstream.content(stride, config=upstream.settings(monkeypatch, stride))
    torch.save(content, tmp_path / "upstream.pth")
    file = from_upstream(tmp_path / "upstream.pth", tmp_path / "model.safetensors")
    program = export_program(file, tmp_path / "model.pt2")
    model = load_generator(file)
    for batch in (1, 3):
        views = torch.stack([some_views(64)] * batch)
        assert difference(program, model, views) <= BOUND


@pytest.mark.drill
def test_a_trained_run_as_its_user_has_it(tmp_path, capsys):
    """In a process that has torch and the file, and nothing of ours."""
    run, program = trained_run()[0], tmp_path / "model.pt2"
    export(["program", str(run), str(program), "--set", "data.image_size=48"])
    assert f"Wrote {program}" in capsys.readouterr().out
    views = some_views(48)[None]
    torch.save(views, tmp_path / "views.pt")
    words = [program, tmp_path / "views.pt", tmp_path / "maps.pt"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, words)], check=True, cwd=tmp_path)
    maps = torch.load(tmp_path / "maps.pt", weights_only=True)
    expected = load_generator(run)(views)
    assert maps.dtype == torch.float32 and (maps - expected).abs().max() <= BOUND
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.pt", "model.pt2", "views.pt"]


def test_the_runs_own_size_is_the_default(tmp_path):
    program = export_program(trained_run()[0], tmp_path / "model.pt2")
    model = torch.export.load(program).module()
    assert model(some_views(SIZE)[None]).shape == (1, 8, SIZE, SIZE)
    with pytest.raises(AssertionError, match=r"size\(\)\[3\] == 32"):  # torch's own guard on another side
        model(some_views(2 * SIZE)[None])


def test_impossible_names_and_sizes(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.pt2"):
        export_program(trained_run()[0], tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"--size: 30 px a side.* nearest: 28 or 32"):
        export_program(trained_run()[0], tmp_path / "model.pt2", 30)
    with pytest.raises(UserError, match=r"--size 32 means data\.image_size, but that is 64"):
        export(["program", "run", "a.pt2", "--size", "32", "--set", "data.image_size=64", "--debug"])
    for size in (0, -4):
        with pytest.raises(UserError, match=f"--size {size}: must be 1 or more"):
            export_program(trained_run()[0], tmp_path / "model.pt2", size)
    assert not list(tmp_path.iterdir())
