"""Validation metrics against NumPy, scikit-image and torchmetrics, and over every split."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr

from neuropbr_dist.config import LossConfig
from neuropbr_dist.objectives import MAP_SLICES, NORMAL, MetricSums, ReconstructionLoss
from neuropbr_dist.objectives.metrics import ANGLE_BIN, MAX_PSNR
from neuropbr_dist.objectives.perceptual import Perceptual, PerceptualUnavailable, require_weights
from neuropbr_dist.objectives.rendering import EYE_AT, fixed_lamps, relit

SAMPLES = 6
LOSS = ReconstructionLoss(LossConfig())


@pytest.fixture(scope="module")
def maps():
    generator = torch.Generator().manual_seed(0)
    target = F.interpolate(torch.rand(SAMPLES, 8, 6, 6, generator=generator), size=(32, 28), mode="bilinear")
    pred = (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    for tensor in (pred, target):
        tensor[:, NORMAL] = F.normalize(tensor[:, NORMAL] - 0.4, dim=1)
    return pred, target


def metrics(*updates):
    sums = MetricSums(LOSS, "cpu")
    for update in updates:
        sums.update(*update)
    return sums


def pictures(tensor):
    array = tensor.double().numpy().copy()
    array[:, NORMAL] = (array[:, NORMAL] + 1) / 2
    return array


def test_mae_psnr_ssim_match_the_references_per_map_and_overall(maps):
    result = metrics(maps).result()
    pred, target = pictures(maps[0]), pictures(maps[1])
    for name, part in MAP_SLICES.items():
        a, b = pred[:, part], target[:, part]
        psnr = np.mean([peak_signal_noise_ratio(b[i], a[i], data_range=1) for i in range(SAMPLES)])
        options = {
            "gaussian_weights": True,
            "use_sample_covariance": False,
            "data_range": 1,
            "channel_axis": 0,
        }
        ssim = np.mean([structural_similarity(a[i], b[i], **options) for i in range(SAMPLES)])
        assert result[f"{name}_mae"] == pytest.approx(np.abs(a - b).mean(), rel=1e-6)
        assert result[f"{name}_psnr"] == pytest.approx(psnr, rel=1e-6)
        assert result[f"{name}_ssim"] == pytest.approx(ssim, abs=1e-5)
        theirs = torchmetrics_psnr(
            torch.tensor(a), torch.tensor(b), data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean"
        )
        assert result[f"{name}_psnr"] == pytest.approx(theirs.item(), rel=1e-6)
        rmse = np.mean([np.sqrt(np.square(a[i] - b[i]).mean()) for i in range(SAMPLES)])
        assert result[f"{name}_rmse"] == pytest.approx(rmse, rel=1e-6)
    for metric in ("mae", "rmse", "psnr", "ssim"):
        assert result[metric] == pytest.approx(np.mean([result[f"{name}_{metric}"] for name in MAP_SLICES]))
    l1_of_normals = np.abs((maps[0] - maps[1])[:, NORMAL].numpy()).mean()
    others = sum(result[f"{name}_mae"] for name in ("albedo", "roughness", "metallic"))
    assert result["l1"] == pytest.approx((others + l1_of_normals) / 4, rel=1e-6)
    assert result["loss"] == pytest.approx(LOSS(*maps)[0].mean().item(), rel=1e-6)


def test_angle_statistics_match_numpy_within_a_bin(maps):
    result = metrics(maps).result()
    a, b = (tensor[:, NORMAL].double().numpy() for tensor in maps)
    angles = np.degrees(np.arccos(np.clip((a * b).sum(1), -1, 1)))
    assert result["normal_angle_mean"] == pytest.approx(angles.mean(), rel=1e-5)
    assert result["normal_angle_median"] == pytest.approx(np.median(angles), abs=ANGLE_BIN)
    assert result["normal_angle_p95"] == pytest.approx(np.percentile(angles, 95), abs=ANGLE_BIN)
    for limit, key in {11.25: "11_25", 22.5: "22_5", 30: "30"}.items():
        assert result[f"normal_angle_under_{key}"] == pytest.approx((angles < limit).mean(), abs=1e-9)


@pytest.mark.parametrize("cut", [[6], [1, 1, 1, 1, 1, 1], [4, 2], [2, 3, 1]])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_result_does_not_depend_on_batches_and_ranks(maps, cut, ranks):
    reference = metrics(maps).result()
    shares = [MetricSums(LOSS, "cpu") for _ in range(ranks)]
    for i, (pred, target) in enumerate(zip(maps[0].split(cut), maps[1].split(cut), strict=True)):
        shares[i % ranks].update(pred, target)
    total = MetricSums(LOSS, "cpu")
    total.tensor().copy_(torch.stack([share.tensor() for share in shares]).sum(0))
    result = total.result()
    assert result.keys() == reference.keys()
    for key, value in reference.items():
        assert result[key] == pytest.approx(value, rel=1e-6), key
    counted = [key for key in reference if "median" in key or "p95" in key or "under" in key]
    assert {key: result[key] for key in counted} == {key: reference[key] for key in counted}


def test_weight_zero_leaves_a_sample_out_even_if_it_holds_nan(maps):
    pred, target = (tensor.clone() for tensor in maps)
    pred[2:] = float("nan")
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    result = metrics((pred, target, weight)).result()
    assert result == pytest.approx(metrics((maps[0][:2], maps[1][:2])).result(), rel=1e-6)


def test_nan_in_a_counted_sample_shows(maps):
    pred = maps[0].clone()
    pred[0, 0, 0, 0] = float("nan")
    result = metrics((pred, maps[1])).result()
    assert np.isnan(result["loss"]) and np.isnan(result["albedo_mae"])
    assert np.isfinite(result["roughness_mae"])


def test_how_materials_look_under_lamps_counts(maps):
    """Roughness alone is wrong: no map's likeness says how much that shows, the pictures' does."""
    pred, target = maps[1].clone(), maps[1]
    pred[:, 3] = 1 - pred[:, 3]
    lamps, eye = fixed_lamps().float(), torch.tensor([0.0, 0.0, EYE_AT])
    assert lamps.shape == (16, 3) and (lamps[:, 2] >= EYE_AT / 2).all()
    ours, theirs = (
        relit(m, lamps[None].expand(SAMPLES, 16, 3), eye.expand(SAMPLES, 16, 3)) for m in (pred, target)
    )
    expected = (ours - theirs).square().mean((2, 3, 4)).sqrt().mean().item()
    result = metrics((pred, target)).result()
    assert result["relit_rmse"] == pytest.approx(expected, rel=1e-5) and expected > 0.1
    assert result["relit_ssim"] < 0.97
    assert "lpips" not in result


def test_sharpness_says_whether_pictures_are_noisy_or_blurred(maps):
    noisy, smooth = maps
    sharpness = metrics((noisy, smooth)).result()["relit_sharpness"]
    assert sharpness > 2
    assert metrics((smooth, noisy)).result()["relit_sharpness"] == pytest.approx(1 / sharpness, rel=1e-6)
    assert metrics((smooth, smooth)).result()["relit_sharpness"] == 1


class Difference(torch.nn.Module):
    """In the place of LPIPS by AlexNet, whose weights can't be had everywhere."""

    def forward(self, a, b):
        assert a.shape[1] == 3 and a.min() >= -1 and a.max() <= 1
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


def test_lpips_is_of_pictures_and_sums_up_like_the_others(maps):
    perceptual = Perceptual(Difference())
    whole, parts = (MetricSums(LOSS, "cpu", perceptual) for _ in range(2))
    whole.update(*maps)
    for i in range(SAMPLES):
        parts.update(maps[0][i : i + 1], maps[1][i : i + 1])
    assert whole.result()["lpips"] == pytest.approx(parts.result()["lpips"], rel=1e-5) != 0
    assert perceptual(maps[1], maps[1]).eq(0).all()


def test_why_there_is_no_lpips_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        PerceptualUnavailable, match=r"w\.pth is not in .*checkpoints and nowhere\.invalid can't"
    ):
        require_weights("https://nowhere.invalid/w.pth")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "w.pth").touch()
    require_weights("https://nowhere.invalid/w.pth")


def test_equal_maps_give_the_best_values(maps):
    result = metrics((maps[1], maps[1])).result()
    assert result["relit_rmse"] == 0 and result["relit_ssim"] == 1
    assert result["loss"] == result["mae"] == result["normal_angle_mean"] == 0
    assert result["psnr"] == result["normal_psnr"] == MAX_PSNR
    assert result["ssim"] == 1
    assert result["normal_angle_p95"] <= ANGLE_BIN
    assert result["normal_angle_under_11_25"] == 1


def test_no_gradient_is_kept_and_no_samples_is_an_error(maps):
    sums = metrics((maps[0].clone().requires_grad_(), maps[1]))
    assert not sums.tensor().requires_grad
    assert sums.tensor().dtype == torch.float64
    with pytest.raises(ValueError, match="no sample"):
        metrics().result()
