"""Losses against formulas in NumPy, SSIM against scikit-image and torchmetrics."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from neuropbr_dist.config import LossConfig
from neuropbr_dist.errors import UserError
from neuropbr_dist.objectives import (
    ALBEDO,
    METALLIC,
    NORMAL,
    ROUGHNESS,
    ReconstructionLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    load_custom_module,
    register_loss,
)
from neuropbr_dist.objectives import ssim as ssim_module
from neuropbr_dist.objectives.normals import normal_angle, normal_loss
from neuropbr_dist.objectives.reconstruction import l1
from neuropbr_dist.objectives.ssim import ssim


def random_maps(batch=2, height=24, width=20, seed=0, dtype=torch.float32):
    maps = torch.rand(batch, 8, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    maps[:, NORMAL] = F.normalize(maps[:, NORMAL] - torch.tensor([0.5, 0.5, -0.2]).view(3, 1, 1), dim=1)
    return maps


def smooth_pictures(seed, batch=2, size=40):
    coarse = torch.rand(batch, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(size, size + 8), mode="bicubic").clamp(0, 1)


# --- L1 and normals


def test_l1_is_the_mean_absolute_error_of_each_map():
    pred, target = random_maps(seed=1), random_maps(seed=2)
    terms = l1(pred, target)
    for name, part in {"albedo": ALBEDO, "roughness": ROUGHNESS, "metallic": METALLIC}.items():
        expected = np.abs(pred[:, part].numpy() - target[:, part].numpy()).mean((1, 2, 3))
        np.testing.assert_allclose(terms[name], expected, rtol=1e-6)
    assert list(terms) == ["albedo", "roughness", "metallic", "normal"]
    assert terms["normal"].shape == (2,)


def test_normals_give_one_minus_cosine_and_the_angle():
    a, b = random_maps(seed=1)[:, NORMAL].double(), random_maps(seed=2)[:, NORMAL].double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(normal_loss(3 * a, b), (1 - cosine).mean((1, 2)))
    torch.testing.assert_close(normal_angle(a, b), torch.rad2deg(torch.acos(cosine)))


@pytest.mark.parametrize("degrees", [0.0, 0.01, 1.0, 90.0, 179.9, 180.0])
def test_float32_angle_is_accurate_at_both_ends(degrees):
    at = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    a = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    b = torch.stack([at.sin(), torch.zeros_like(at), at.cos()]).float().view(1, 3, 1, 1)
    assert normal_angle(a, b).item() == pytest.approx(degrees, abs=2e-5)


def test_normal_loss_has_finite_gradients_at_equal_opposite_and_zero_vectors():
    target = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 1, 3)
    pred = torch.stack([target[..., 0], -target[..., 0], 0 * target[..., 0]], dim=-1).requires_grad_()
    loss = normal_loss(pred, target)
    loss.sum().backward()
    assert loss.item() == pytest.approx((0 + 2 + 0.5) / 3)
    assert pred.grad.isfinite().all()


# --- SSIM


def test_ssim_equals_scikit_image_and_torchmetrics():
    x, y = smooth_pictures(1), smooth_pictures(2)
    y = (0.7 * x + 0.3 * y).clamp(0, 1)
    ours = ssim(x, y)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    for sample in range(2):
        for channel in range(3):
            expected = structural_similarity(
                x[sample, channel].double().numpy(), y[sample, channel].double().numpy(), **options
            )
            assert ours[sample, channel].item() == pytest.approx(expected, abs=1e-5)
    _, picture = structural_similarity_index_measure(x, y, data_range=1.0, sigma=1.5, return_full_image=True)
    inside = picture[..., 5:-5, 5:-5]  # the windows that reach into no padding
    torch.testing.assert_close(ours, inside.mean((2, 3)), atol=1e-5, rtol=0)


def test_ssim_of_equal_pictures_is_exactly_one_even_in_bright_flat_areas():
    x = smooth_pictures(3)
    x[..., :20, :20] = 1.0
    assert (ssim(x, x) == 1).all()


def test_ssim_gradient_matches_finite_differences():
    x = torch.rand(1, 2, 13, 12, dtype=torch.float64, requires_grad=True)
    y = torch.rand(1, 2, 13, 12, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ssim(x, y), (x,))


def test_ssim_in_chunks_equals_ssim_at_once(monkeypatch):
    x, y = smooth_pictures(4).requires_grad_(), smooth_pictures(5)
    whole = ssim(x, y)
    (gradient,) = torch.autograd.grad(whole.sum(), x)
    monkeypatch.setattr(ssim_module, "_PIXELS_AT_ONCE", 1)
    chunks = ssim(x, y)
    torch.testing.assert_close(chunks, whole)
    torch.testing.assert_close(torch.autograd.grad(chunks.sum(), x)[0], gradient)


def test_the_blurs_compiled_form_is_the_same(monkeypatch):
    planes = torch.rand(2, 4, 15, 13, dtype=torch.float64)
    plain = ssim_module._blur(planes)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(ssim_module._blur(planes), plain, rtol=1e-13, atol=1e-13)


def test_ssim_is_float32_under_autocast_and_for_any_memory_format():
    x, y = smooth_pictures(6), smooth_pictures(7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ssim(x.contiguous(memory_format=torch.channels_last), y)
    torch.testing.assert_close(mixed, ssim(x, y))
    assert mixed.dtype == torch.float32


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(UserError, match="at least 11x11 pixels, got 10x16"):
        ssim(torch.rand(1, 3, 16, 10), torch.rand(1, 3, 16, 10))


# --- the reconstruction loss


def test_total_is_the_guides_weighted_sum():
    config = LossConfig(
        w_l1=2.0, w_ssim=0.3, w_normal=0.5, w_albedo=1.1, w_roughness=0.7, w_metallic=0.2, w_normal_map=3.0
    )
    pred, target = random_maps(seed=1), random_maps(seed=2)
    total, terms = ReconstructionLoss(config)(pred, target)
    expected = (
        2.0
        * (
            1.1 * terms["l1_albedo"]
            + 0.7 * terms["l1_roughness"]
            + 0.2 * terms["l1_metallic"]
            + 3.0 * terms["l1_normal"]
        )
        + 0.3 * (1 - ssim(pred[:, ALBEDO], target[:, ALBEDO]).mean(1))
        + 0.5 * terms["normal_loss"]
    )
    torch.testing.assert_close(total, expected)
    assert total.shape == (2,)
    assert set(terms) == {
        "l1_albedo", "l1_roughness", "l1_metallic", "l1_normal", "ssim_loss", "normal_loss", "normal_angle",
    }  # fmt: skip


def test_loss_is_zero_for_equal_maps_and_each_sample_stands_alone():
    loss = ReconstructionLoss(LossConfig())
    pred, target = random_maps(batch=3, seed=1), random_maps(batch=3, seed=2)
    assert (loss(target, target)[0] == 0).all()
    together = loss(pred, target)[0]
    alone = torch.cat([loss(pred[i : i + 1], target[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_half_precision_predictions_and_autocast_are_computed_in_float32():
    loss = ReconstructionLoss(LossConfig())
    pred, target = random_maps(seed=1).bfloat16(), random_maps(seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, terms = loss(pred, target)
    torch.testing.assert_close(total, loss(pred.float(), target)[0])
    assert all(term.dtype == torch.float32 and not term.requires_grad for term in terms.values())
    double = loss(random_maps(dtype=torch.float64), random_maps(seed=1, dtype=torch.float64))[0]
    assert double.dtype == torch.float64


def test_weight_zero_leaves_ssim_out_so_tiny_pictures_pass():
    pred, target = random_maps(height=8, width=8), random_maps(height=8, width=8, seed=1)
    assert "ssim_loss" not in ReconstructionLoss(LossConfig(w_ssim=0))(pred, target)[1]
    with pytest.raises(UserError, match=r"data\.image_size"):
        ReconstructionLoss(LossConfig())(pred, target)


def test_gradient_descent_on_the_loss_reaches_the_target():
    loss = ReconstructionLoss(LossConfig())
    target = random_maps(batch=1, height=16, width=16)
    pred = random_maps(batch=1, height=16, width=16, seed=1).requires_grad_()
    optimizer = torch.optim.Adam([pred], lr=0.02)
    first = loss(pred, target)[0].item()
    for _ in range(100):
        optimizer.zero_grad()
        total = loss(pred, target)[0].sum()
        total.backward()
        optimizer.step()
    assert total.item() < 0.1 * first


# --- adversarial


def test_hinge_loss():
    real, fake = torch.randn(3, 1, 4, 5), torch.randn(3, 1, 4, 5)
    expected = np.maximum(0, 1 - real.numpy()).mean((1, 2, 3)) + np.maximum(0, 1 + fake.numpy()).mean(
        (1, 2, 3)
    )
    np.testing.assert_allclose(discriminator_loss(real, fake, "hinge"), expected, rtol=1e-5)
    # Twenty values of about 1 may cancel out: float32's rounding is absolute here.
    mean = fake.double().numpy().mean((1, 2, 3))
    np.testing.assert_allclose(generator_loss(fake, "hinge"), -mean, rtol=1e-5, atol=2e-7)


def test_bce_loss_of_logits_and_of_probabilities_agree():
    real, fake = torch.randn(3, 1, 4, 5), torch.randn(3, 1, 4, 5)
    p_real, p_fake = real.sigmoid(), fake.sigmoid()
    expected = (-p_real.log()).mean((1, 2, 3)) + (-(1 - p_fake).log()).mean((1, 2, 3))
    torch.testing.assert_close(discriminator_loss(real, fake, "bce"), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(discriminator_loss(p_real, p_fake, "bce", sigmoid=True), expected)
    torch.testing.assert_close(generator_loss(fake, "bce"), (-p_fake.log()).mean((1, 2, 3)))
    torch.testing.assert_close(generator_loss(p_fake, "bce", sigmoid=True), generator_loss(fake, "bce"))


def test_label_smoothing_moves_the_target_of_true_maps_alone():
    """With soft targets, against torch's own; the loss is least at the logit of the target, not at infinity."""
    real, fake = torch.randn(3, 1, 4, 5), torch.randn(3, 1, 4, 5)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    expected = bce(real, torch.full_like(real, 0.9), reduction="none").mean((1, 2, 3))
    expected += bce(fake, torch.zeros_like(fake), reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(discriminator_loss(real, fake, "bce", smoothing=0.1), expected)
    smooth = discriminator_loss(real.sigmoid(), fake.sigmoid(), "bce", sigmoid=True, smoothing=0.1)
    torch.testing.assert_close(smooth, expected)
    least = torch.tensor(0.9).logit()
    losses = [
        discriminator_loss((least + d).reshape(1, 1), torch.zeros(1, 1), "bce", smoothing=0.1)
        for d in (-1, 0, 1)
    ]
    assert losses[1] < losses[0] and losses[1] < losses[2]


def test_bce_is_finite_for_a_saturated_discriminator():
    sure = torch.tensor([[0.0, 1.0]], requires_grad=True)
    discriminator_loss(sure, sure, "bce", sigmoid=True).sum().backward()
    assert sure.grad.isfinite().all()
    assert discriminator_loss(torch.tensor([[-200.0]]), torch.tensor([[200.0]]), "bce").item() == 400


def test_unknown_kind_and_hinge_with_sigmoid_are_refused():
    logits = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="known: hinge, bce"):
        generator_loss(logits, "wgan")
    with pytest.raises(ValueError, match="takes logits"):
        discriminator_loss(logits, logits, "hinge", sigmoid=True)


def test_feature_matching_is_the_mean_over_blocks_of_their_mean_difference():
    """A block of few elements counts as one of many; the true side gets no gradient; sums are of float32."""
    shapes = [(2, 3, 8, 8), (2, 5, 4, 4), (2, 7, 3, 3)]
    fake, true = ([torch.randn(shape).bfloat16().requires_grad_() for shape in shapes] for _ in range(2))
    found = feature_matching_loss(fake, true)
    pairs = zip(fake, true, strict=True)
    apart = [np.abs((a - b).detach().float().numpy()).reshape(2, -1).mean(1) for a, b in pairs]
    np.testing.assert_allclose(found.detach(), np.mean(apart, axis=0), rtol=1e-5)
    assert found.dtype == torch.float32
    found.sum().backward()
    assert all(f.grad is not None for f in fake) and all(t.grad is None for t in true)
    fake, true = ([x.double() for x in features] for features in (fake, true))
    assert feature_matching_loss(fake, true).dtype == torch.float64


# --- custom losses


def test_a_custom_loss_from_a_users_file_joins_the_total(tmp_path):
    module = tmp_path / "my_losses.py"
    module.write_text(
        "from neuropbr_dist.objectives import ALBEDO, register_loss\n\n"
        "@register_loss('test_albedo_mse')\n"
        "def albedo_mse(pred, target):\n"
        "    return (pred[:, ALBEDO] - target[:, ALBEDO]).square().mean((1, 2, 3))\n"
    )
    config = LossConfig(custom={"test_albedo_mse": 0.25}, custom_module=str(module))
    pred, target = random_maps(seed=1), random_maps(seed=2)
    total, terms = ReconstructionLoss(config)(pred, target)
    expected = (pred[:, ALBEDO] - target[:, ALBEDO]).square().mean((1, 2, 3))
    torch.testing.assert_close(terms["custom_test_albedo_mse"], expected)
    torch.testing.assert_close(total, ReconstructionLoss(LossConfig())(pred, target)[0] + 0.25 * expected)
    ReconstructionLoss(config)  # the file is run once, so the name isn't registered twice


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("\ndef f(:\n", "line 2: SyntaxError: "),
        ("\n\n1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
    ],
)
def test_a_custom_module_that_raises_is_named(tmp_path, text, named):
    (tmp_path / "losses.py").write_text(text)
    with pytest.raises(UserError, match=f"losses.py, {named}"):
        load_custom_module(tmp_path / "losses.py")


def test_mistakes_with_custom_losses_say_what_to_do(tmp_path):
    @register_loss("test_scalar")
    def scalar(pred, target):
        return (pred - target).abs().mean()

    with pytest.raises(UserError, match=r"names 'edges'.*registered: .*test_scalar"):
        ReconstructionLoss(LossConfig(custom={"edges": 1.0}))
    with pytest.raises(UserError, match=r"'test_scalar' returned \(\); .*shape \(2,\)"):
        ReconstructionLoss(LossConfig(custom={"test_scalar": 1.0}))(random_maps(), random_maps())
    with pytest.raises(UserError, match="registered twice"):
        register_loss("test_scalar")(scalar)
    with pytest.raises(UserError, match=r"loss.custom_module: .*nowhere.py is not a Python file"):
        load_custom_module(tmp_path / "nowhere.py")
