"""`launch/infer.py --relight`, and the bench that it shades on."""

import numpy as np
import pytest
import torch
from PIL import Image

from neuropbr_dist.commands.infer import run as infer
from neuropbr_dist.inference.relight import FRAME_MS, FRAMES, NAME, SMALLEST_SIDE, to_bytes, write_animation
from neuropbr_dist.materials.bench import EXPOSURE, SKY, orbit, relit
from neuropbr_dist.materials.channels import linear_to_srgb
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.materials.families import material_maps
from tests.support.train_runs import SINGLE_PROCESS_SAVES
from tests.support.trained_run import trained_run

pytestmark = SINGLE_PROCESS_SAVES


def frames(path):
    """Each frame, uint8 (H, W, 3), and how long it stands, in ms."""
    with Image.open(path) as film:
        shown = []
        for i in range(film.n_frames):
            film.seek(i)
            shown.append((np.asarray(film.convert("RGB")), film.info["duration"]))
        return shown


def test_white_paper_in_the_middle_reads_the_exposure_and_the_sky():
    paper = np.zeros((8, 65, 65), np.uint8)
    paper[:4], paper[5:] = 255, np.array([128, 128, 255], np.uint8)[:, None, None]
    sky = SKY.irradiance_from_above()[0] / np.pi
    middle = relit(paper, orbit(0.3))[32, 32, 0] / 255
    # Fresnel and the wide highlight of a rough dielectric differ from plain Lambert by a few hundredths.
    assert middle == pytest.approx(float(linear_to_srgb(np.array(EXPOSURE * (1 + sky)))), abs=0.05)


def test_slopes_face_the_lamp():
    """A normal that leans to the lamp is lit more than one that leans away: red right, green up."""
    for channel, turn in ((5, 0.0), (6, 0.25)):
        maps = np.full((8, 16, 16), 128, np.uint8)
        maps[4], maps[7] = 0, 240
        to, away = maps.copy(), maps.copy()
        to[channel], away[channel] = 190, 66
        assert relit(to, orbit(turn)).mean() > relit(away, orbit(turn)).mean() + 20


def test_animation_of_predicted_and_true(tmp_path):
    true = material_maps(1, 4, 200)
    target = decode_maps(torch.from_numpy(true)[None])[0]
    pred = target.clone()
    pred[:3] = pred[:3].mean()
    write_animation(tmp_path / NAME, pred, target)
    shown = frames(tmp_path / NAME)
    assert [duration for _, duration in shown] == [FRAME_MS] * FRAMES
    first = shown[0][0].astype(int)
    assert first.shape[0] > 200 and first.shape[1] == 2 * 200 + 8
    assert (to_bytes(target) == true).mean() > 0.99  # decoded and encoded again
    # WebP is lossy; the right half is the true material all the same.
    assert np.abs(first[:200, 208:] - relit(true, orbit(0))).mean() < 6
    assert np.abs(first[:200, :200] - relit(to_bytes(pred), orbit(0))).mean() < 6
    moved = [np.abs(picture.astype(int) - first).mean() for picture, _ in shown]
    assert moved[FRAMES // 2] > 5 and max(moved[1], moved[-1]) < moved[FRAMES // 2]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_infer_relight(tmp_path, capsys):
    run, renders, _ = trained_run()
    words = ["--checkpoint", str(run), "--device", "cpu", "--debug", "--relight"]
    infer([*words, "--out-dir", str(tmp_path / "known")])
    assert f", {NAME} to {tmp_path / 'known'}" in capsys.readouterr().out
    infer([*words, "--out-dir", str(tmp_path / "own"), "--input-dir", str(renders / "clean" / "sample_0001")])
    widths = {name: frames(tmp_path / name / NAME)[0][0].shape[1] for name in ("known", "own")}
    assert widths == {"known": 2 * SMALLEST_SIDE + 8, "own": SMALLEST_SIDE}
