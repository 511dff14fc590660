"""`infer --input-dir` on photos: what it finds, says, writes and refuses, through the command itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neuropbr_dist.commands.infer import run as infer
from neuropbr_dist.errors import UserError
from tests.support.phone import photograph, save_photo
from tests.support.train_runs import SINGLE_PROCESS_SAVES, temporary_folder, whole_run
from tests.support.trained_run import trained_run

pytestmark = [SINGLE_PROCESS_SAVES, pytest.mark.multiprocess]


def infer_to(out: Path, *words: object) -> None:
    sized = () if "--size" in words else ("--size", "32")
    infer(["--out-dir", str(out), "--device", "cpu", "--debug", *sized, *map(str, words)])


@pytest.fixture(scope="module")
def phone() -> Path:
    """Three photos of built-in stone, 480 px, each turned otherwise. Not to be written to."""
    folder = temporary_folder() / "stone"
    photograph(folder, 7, 8, 480)
    return folder


def views(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(folder / f"view_{k}.png"), float) for k in range(3)]


def alike(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_three_photos_come_out_as_views_of_one_frame(phone, tmp_path, capsys):
    """EXIF, register, tilt, frame, maps; with a side of one's own, tiles and 16 bits."""
    words = ("--size", 96, "--tile", 64, "--bits", 16)
    infer_to(tmp_path, "--checkpoint", whole_run(), "--input-dir", phone, *words)
    said = capsys.readouterr().out
    assert "Photos IMG_0.jpg, IMG_1.jpg, IMG_2.jpg" in said and "96 px" in said
    assert "px of 512 apart in the" in said and "tilts 16°, 32°, 2°" in said
    first, second, third = views(tmp_path)
    assert first.shape == (96, 96, 3)
    assert alike(first, second) > 0.9 and alike(first, third) > 0.9
    assert Image.open(tmp_path / "albedo.png").size == (96, 96) and (tmp_path / "picture.png").exists()


def test_as_they_are_photos_do_not_lie_on_each_other(phone, tmp_path, capsys):
    infer_to(tmp_path, "--checkpoint", whole_run(), "--input-dir", phone, "--cameras", "none")
    first, second, _ = views(tmp_path)
    assert alike(first, second) < 0.5
    middle = Image.open(phone / "IMG_0.jpg").transpose(Image.Transpose.ROTATE_270).crop((0, 60, 360, 420))
    assert alike(first, np.asarray(middle.resize((32, 32), Image.Resampling.BOX), float)) > 0.9


def test_one_photo_is_enough(phone, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    shutil.copy(phone / "IMG_2.jpg", tmp_path / "mine")
    infer_to(tmp_path / "out", "--checkpoint", whole_run(), "--input-dir", tmp_path / "mine")
    first, second, third = views(tmp_path / "out")
    assert first.any() and not second.any() and not third.any()


def test_a_network_trained_without_alignment_says_so(phone, tmp_path, capsys):
    run = trained_run()[0]
    infer_to(tmp_path / "out", "--checkpoint", run, "--input-dir", phone)
    assert "these photos want one trained with model.align = plane" in capsys.readouterr().out.lower()
    (tmp_path / "mine").mkdir()
    shutil.copy(phone / "IMG_2.jpg", tmp_path / "mine")
    with pytest.raises(UserError, match=r"want one trained with model\.align = plane: it needs three views"):
        infer_to(tmp_path / "one", "--checkpoint", run, "--input-dir", tmp_path / "mine")
    assert not (tmp_path / "one").exists()


def test_a_folder_of_folders(phone, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(phone / "IMG_0.jpg", tmp_path / "in" / name)
    infer_to(tmp_path / "out", "--checkpoint", whole_run(), "--input-dir", tmp_path / "in", "--batch-size", 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--cameras", "nowhere.json"),
            r"--cameras nowhere\.json: no such file; allowed: auto, none, or a camera",
        ),
        (("--reference", "3"), r"--reference 3; allowed: 0 to 2"),
        (("--cameras", "none", "--reference", "1"), "--reference is about --cameras auto"),
    ],
)
def test_flags_that_mean_nothing_here(phone, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        infer_to(tmp_path / "out", "--checkpoint", whole_run(), "--input-dir", phone, *words)
    assert not (tmp_path / "out").exists()


def test_more_than_three_photos_are_refused(tmp_path):
    picture = np.zeros((64, 64, 3), np.uint8)
    for k in range(4):
        save_photo(tmp_path / "in" / f"{k}.jpg", picture)
    with pytest.raises(UserError, match=r"one to three pictures \(PNG, JPEG, HEIC\) are needed, found 4"):
        infer_to(tmp_path / "out", "--checkpoint", whole_run(), "--input-dir", tmp_path / "in")


@pytest.mark.drill
def test_a_photo_of_12000_px(phone, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    large = Image.open(phone / "IMG_2.jpg").resize((9000, 12000))
    save_photo(tmp_path / "in" / "a.jpg", np.asarray(large))
    infer_to(tmp_path / "out", "--checkpoint", whole_run(), "--input-dir", tmp_path / "in")
    assert "a.jpg: reduced to 3072 x 4096 px" in capsys.readouterr().out
