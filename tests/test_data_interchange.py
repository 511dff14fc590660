"""A packed set and the PNG files it was made from are one data set to training and inference."""

from __future__ import annotations

import shutil
from functools import cache

import numpy as np
import pytest
from PIL import Image

from neuropbr_dist.commands.infer import run as infer
from neuropbr_dist.data.builtin import generate
from neuropbr_dist.data.packed.pack import pack
from tests.support.train_runs import (
    assert_same_run,
    command,
    half_run,
    resume,
    temporary_folder,
    tiny_set,
    tiny_words,
    whole_run,
)
from tests.support.trained_run import trained_run

pytestmark = [pytest.mark.multiprocess, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]


@cache
def packed_set():
    dest = temporary_folder() / "packed"
    assert pack(*tiny_set(), dest, progress=False).clean
    return dest


def from_packed(dest, *words):
    """A tiny run's words, with --data in place of the two folders."""
    tiny = tiny_words(training__save_every_n_epochs=2)
    assert tiny[0] == "--input-dir" and tiny[2] == "--output-dir"
    return ["--data", dest, *tiny[4:], *words]


def test_training_from_either_is_the_same_run(tmp_path):
    ended = command("--checkpoint-dir", tmp_path / "run", *from_packed(packed_set()))
    assert ended.code == 0, ended.err
    assert_same_run(tmp_path / "run", whole_run())


def test_a_run_from_png_goes_on_from_the_packed_set_and_back(tmp_path):
    run = shutil.copytree(half_run(), tmp_path / "run", symlinks=True)
    ended = resume(run, "--data", packed_set(), "--stop-after-epochs", "3")
    assert ended.code == 0, ended.err
    assert "data.packed_dir: None -> " in ended.out and "data.input_dir" in ended.out
    inputs, outputs = tiny_set()
    ended = resume(run, "--input-dir", inputs, "--output-dir", outputs)
    assert ended.code == 0, ended.err
    assert_same_run(run, whole_run())


def test_another_set_is_refused(tmp_path):
    run = shutil.copytree(half_run(), tmp_path / "run", symlinks=True)
    other = tmp_path / "packed"
    generate(tmp_path / "pictures", count=2, size=32, seed=9, workers=1, progress=False)
    pack(tmp_path / "pictures" / "input", tmp_path / "pictures" / "output", other, progress=False)
    ended = resume(run, "--data", other)
    assert ended.code == 2 and "another data set" in ended.err, ended


def test_naming_both_is_refused_and_so_is_what_is_no_packed_set(tmp_path):
    inputs, outputs = tiny_set()
    both = ["--input-dir", inputs, "--output-dir", outputs, "--data", packed_set()]
    for words, message in [(both, "name one or the other"), (["--data", inputs], "not a packed set")]:
        ended = command("--checkpoint-dir", tmp_path / "run", *words)
        assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1, ended


def test_an_altered_record_ends_training_in_one_line_that_names_it(tmp_path):
    dest = shutil.copytree(packed_set(), tmp_path / "packed")
    for shard in (dest / "shards").iterdir():
        data = bytearray(shard.read_bytes())
        data[5000] ^= 1
        shard.write_bytes(data)
    for workers in ("0", "2"):
        words = from_packed(dest, "--set", f"data.num_workers={workers}", "--overwrite")
        ended = command("--checkpoint-dir", tmp_path / "run", *words)
        assert ended.code == 2, ended
        assert "was altered" in ended.err and "Traceback" not in ended.err and "sample_000" in ended.err


def test_inference_from_either_is_the_same(tmp_path, capsys):
    run, inputs, outputs = trained_run()
    dest = tmp_path / "packed"
    pack(inputs, outputs, dest, progress=False)
    common = ["--checkpoint", str(run), "--sample-idx", "3", "--device", "cpu"]
    infer([*common, "--out-dir", str(tmp_path / "png")])
    infer([*common, "--out-dir", str(tmp_path / "pack"), "--data", str(dest)])
    assert str(dest) in capsys.readouterr().out
    for name in ("albedo", "roughness", "metallic", "normal"):
        one, other = (
            np.asarray(Image.open(next((tmp_path / part).rglob(f"{name}.png")))) for part in ("png", "pack")
        )
        np.testing.assert_array_equal(one, other)
