"""Figures and map files: sizes, places and colours."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from neuropbr_dist.monitor import figure as figures
from neuropbr_dist.monitor import maps_to_images, save_png, take_look
from neuropbr_dist.monitor.figure import ANGLE_LIMIT, ERROR, ERROR_LIMIT, PREDICTED, ROWS, TRUE, VIEWS, Layout
from neuropbr_dist.monitor.heat import heat
from neuropbr_dist.monitor.pictures import LARGEST_SIDE, error_maps


def sample(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8, generator=generator)
    maps = torch.rand(8, height, width, generator=generator)
    maps[5:] = F.normalize(maps[5:] - 0.4, dim=0)
    return views, maps


def comparison(views, pred, target, **options):
    return figures.comparison(take_look("sample", views, pred, target), **options)


def cell(figure, layout, row, column):
    x, y = layout.corner(row, column)
    return figure[y : y + layout.cell_height, x : x + layout.cell_width]


def lightness(colours):
    return colours.astype(float) @ [0.2126, 0.7152, 0.0722]


# --- map files


def test_maps_become_images_with_encoded_normals():
    maps = torch.zeros(8, 2, 2)
    maps[0] = 1.0
    maps[3], maps[4] = 0.5, 2.0  # metallic beyond its range is clipped
    maps[5:] = torch.tensor([0.0, -1.0, 1.0]).view(3, 1, 1)
    images = maps_to_images(maps)
    assert list(images) == ["albedo", "roughness", "metallic", "normal"]
    assert {name: image.shape for name, image in images.items()} == {
        "albedo": (2, 2, 3),
        "roughness": (2, 2),
        "metallic": (2, 2),
        "normal": (2, 2, 3),
    }
    assert all(image.dtype == np.uint8 for image in images.values())
    pixels = {name: image[0, 0].tolist() for name, image in images.items()}
    assert pixels == {"albedo": [255, 0, 0], "roughness": 128, "metallic": 255, "normal": [128, 0, 255]}


def test_every_byte_survives_decoding_and_encoding():
    levels = torch.arange(256).view(1, 16, 16).expand(8, 16, 16) / 255
    decoded = torch.cat([levels[:5], 2 * levels[5:] - 1])
    for image in maps_to_images(decoded).values():
        assert (image.reshape(256, -1) == np.arange(256)[:, None]).all()


def test_png_is_written_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "albedo.png"
    path.write_bytes(b"old")
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    save_png(path, image)
    assert (np.asarray(Image.open(path)) == image).all()
    assert [file.name for file in tmp_path.iterdir()] == ["albedo.png"]


# --- heat


def test_heat_rises_evenly_in_lightness_from_dark_to_bright():
    ramp = heat(np.linspace(0, 1, 64))
    assert ramp.dtype == np.uint8 and ramp.shape == (64, 3)
    assert (np.diff(lightness(ramp)) > 0).all()
    assert lightness(ramp[0]) < 20 and lightness(ramp[-1]) > 220
    assert len(np.unique(heat(np.linspace(0, 1, 1024)), axis=0)) > 250
    assert (heat(np.array([-1.0, 2.0])) == heat(np.array([0.0, 1.0]))).all()


# --- the comparison figure


@pytest.mark.parametrize(
    ("size", "cell_size"),
    [((64, 64), (192, 192)), ((16, 16), (192, 192)), ((256, 200), (256, 200)), ((512, 256), (384, 192))],
)
@pytest.mark.parametrize("labels", [True, False])
def test_layout_follows_the_maps_size(size, cell_size, labels):
    views, maps = sample(*size)
    figure = comparison(views, maps, maps, labels=labels)
    layout = Layout(cell_size[1], cell_size[0], title=False, labels=labels)
    assert figure.dtype == np.uint8
    assert figure.shape == (*reversed(layout.size), 3)


def test_rows_hold_views_prediction_truth_and_error():
    views, target = sample(200, 200)
    pred = target.clone()
    pred[3] = 1 - pred[3]
    figure = comparison(views, pred, target, title="Sample 3, epoch 10")
    layout = Layout(200, 200, title=True, labels=True)
    for i in range(3):
        assert (cell(figure, layout, VIEWS, i) == views[i].permute(1, 2, 0).numpy()).all()
    for row, maps in {PREDICTED: pred, TRUE: target}.items():
        albedo, roughness, _, normal = maps_to_images(maps).values()
        assert (cell(figure, layout, row, 0) == albedo).all()
        assert (cell(figure, layout, row, 1) == roughness[..., None]).all()
        assert (cell(figure, layout, row, 3) == normal).all()
    error = heat((pred[3] - target[3]).abs().numpy() / ERROR_LIMIT)
    assert (cell(figure, layout, ERROR, 1) == error).all()


def test_tiny_maps_are_enlarged_with_sharp_pixels():
    views, maps = sample(16, 16)
    figure = comparison(views, maps, maps, labels=False)
    layout = Layout(192, 192, title=False, labels=False)
    small = cell(figure, layout, PREDICTED, 0)[6::12, 6::12]
    assert (small == maps_to_images(maps)["albedo"]).all()
    assert (cell(figure, layout, PREDICTED, 0) == small.repeat(12, 0).repeat(12, 1)).all()


@pytest.mark.parametrize("size", [64, 200, 500])
def test_equal_maps_show_the_zero_colour_and_the_bars_run_over_all_colours(size):
    views, maps = sample(size, size)
    figure = comparison(views, maps, maps)
    side = {64: 192, 200: 200, 500: 384}[size]
    layout = Layout(side, side, title=False, labels=True)
    for column in range(4):
        assert (cell(figure, layout, ERROR, column) == heat(np.zeros(1))).all()
    for left, right in (layout.span(0, 2), layout.span(3, 3)):
        bar = figure[layout.bar_top + 2, left:right]
        assert (bar == heat(np.linspace(0, 1, right - left))).all()


def test_normal_error_is_in_degrees():
    views, target = sample(200, 200)
    target[5:] = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)
    tilt = torch.deg2rad(torch.tensor(15.0))
    pred = target.clone()
    pred[5:] = torch.stack([tilt.sin(), torch.tensor(0.0), tilt.cos()]).view(3, 1, 1)
    assert error_maps(pred, target)["normal"].mean().item() == pytest.approx(15, abs=1e-3)
    layout = Layout(200, 200, title=False, labels=True)
    shown = cell(comparison(views, pred, target), layout, ERROR, 3)
    assert np.abs(shown.astype(int) - heat(np.array(15 / ANGLE_LIMIT)).astype(int)).max() <= 1


def test_labels_and_title_add_ink_outside_the_pictures_only():
    views, target = sample(200, 200)
    pred = sample(200, 200, seed=1)[1]
    plain = comparison(views, pred, target, labels=False)
    named = comparison(views, pred, target, title="A title")
    plain_layout = Layout(200, 200, title=False, labels=False)
    layout = Layout(200, 200, title=True, labels=True)
    for row in ROWS:
        for column in range(3 if row == VIEWS else 4):
            assert (cell(plain, plain_layout, row, column) == cell(named, layout, row, column)).all()
    title_strip = named[: layout.rows[VIEWS] - layout.line]
    assert lightness(title_strip).max() > 200
    assert lightness(named[:, : layout.columns[0] - 1]).max() > 100  # row names
    assert lightness(cell(named, layout, VIEWS, 3)).max() > 200  # mean errors
    assert lightness(cell(plain, plain_layout, VIEWS, 3)).max() < 40


def test_a_prediction_without_truth_has_two_rows_and_no_bar():
    views, maps = sample(200, 200)
    figure = comparison(views, maps, None, title="Mine")
    layout = Layout(200, 200, rows=(VIEWS, PREDICTED), title=True, labels=True)
    assert figure.shape == (*reversed(layout.size), 3)
    assert (cell(figure, layout, VIEWS, 2) == views[2].permute(1, 2, 0).numpy()).all()
    assert (cell(figure, layout, PREDICTED, 0) == maps_to_images(maps)["albedo"]).all()
    assert lightness(figure[-20:]).max() < 40


@pytest.mark.parametrize("row", ROWS)
def test_any_row_can_be_drawn_alone(row):
    views, target = sample(200, 200)
    pred = sample(200, 200, seed=1)[1]
    whole, alone = comparison(views, pred, target), comparison(views, pred, target, rows=[row])
    whole_layout = Layout(200, 200, title=False, labels=True)
    layout = Layout(200, 200, rows=[row], title=False, labels=True)
    assert alone.shape == (*reversed(layout.size), 3) and len(alone) < len(whole) / 2
    for column in range(3 if row == VIEWS else 4):
        assert (cell(alone, layout, row, column) == cell(whole, whole_layout, row, column)).all()


# --- what is kept of a sample


def test_a_look_is_small_its_errors_are_those_of_the_full_size():
    """Noise that averages out is still an error."""
    views, target = sample(2 * LARGEST_SIDE, LARGEST_SIDE)
    target[:5] = target[:5] * 0.5 + 0.25
    pred = target.clone()
    noise = torch.tensor([[0.1, -0.1], [-0.1, 0.1]]).repeat(LARGEST_SIDE, LARGEST_SIDE // 2)
    pred[3] += noise
    look = take_look("sample", views, pred, target)
    assert look.views.shape[-2:] == look.pred.shape[-2:] == (LARGEST_SIDE, LARGEST_SIDE // 2)
    torch.testing.assert_close(look.pred[3], look.target[3], atol=1e-5, rtol=0)
    assert look.mean_errors() == pytest.approx(
        {"albedo": 0, "roughness": 0.1, "metallic": 0, "normal": 0}, abs=1e-4
    )
    torch.testing.assert_close(look.pred[5:].norm(dim=0), torch.ones(LARGEST_SIDE, LARGEST_SIDE // 2))
    block = target[0, :2, :2].mean()
    torch.testing.assert_close(look.target[0, 0, 0], block)
