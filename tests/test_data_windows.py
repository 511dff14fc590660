"""Of samples that ranks share, each reads what its rows need, and gets the rows of the whole batch, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neuropbr_dist.config import DataConfig, TransformConfig
from neuropbr_dist.data.alignment import Alignment
from neuropbr_dist.data.augment import Augmentation, turn_views
from neuropbr_dist.data.batch import Bands, DeviceBatch, MicroBatch, filler
from neuropbr_dist.data.device import to_device
from neuropbr_dist.data.load import load_batch
from neuropbr_dist.data.loader import batches_of
from neuropbr_dist.data.open import open_source
from neuropbr_dist.data.order import Slot
from neuropbr_dist.data.packed import records
from neuropbr_dist.data.packed.pack import pack
from neuropbr_dist.data.windows import window_of
from neuropbr_dist.materials.cameras import wide_cameras
from neuropbr_dist.materials.footprint import Window, rows_seen
from neuropbr_dist.materials.plane import WRAP, encode
from neuropbr_dist.materials.rectify import rectify
from tests.support.material_files import write_cameras_of, write_set
from tests.support.packed_sets import bytes_read

CPU = torch.device("cpu")
SIDE = 96
TRAINING = Alignment(min_confidence=0.5, seed=1, ignore_wrap=0.5, drop_views=0.4, jitter=0.008)
EVERY_TURN = Augmentation(2, flips=True, rotations=True)
MIXED = replace(EVERY_TURN, mixtures=0.5)


def strips(count: int, side: int = SIDE) -> list[tuple[int, int]]:
    return [(i * side // count, (i + 1) * side // count) for i in range(count)]


# -- which part of what is stored --------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(8))
def test_the_stored_part_turned_is_the_strip(orientation):
    picture = torch.arange(2 * 12 * 12).view(2, 12, 12)
    for rows in [*strips(3, 12), (1, 4), (0, 12)]:
        part = picture[:, slice(*window_of(rows, 12, orientation).rows)]
        part = part[..., slice(*window_of(rows, 12, orientation).columns)]
        assert torch.equal(turn_views(part, orientation), turn_views(picture, orientation)[:, slice(*rows)])


def random_camera(rng: np.random.Generator) -> np.ndarray:
    """As people take pictures, and beyond: any roll, far off, near by, nearly from the edge, plane repeating or not."""
    camera = wide_cameras(rng)[0]
    camera = replace(
        camera,
        position=camera.position * np.array([1, 1, 10 ** rng.uniform(-1.5, 0.8)]),
        roll=rng.uniform(-np.pi, np.pi),
    )
    return encode(camera.on_plane(), wrap=bool(rng.random() < 0.5))


def test_rectifying_looks_at_no_other_rows():
    """Whatever stands in the rest of the picture, the strip is the same to the bit."""
    rng, side, spared = np.random.default_rng(0), 64, []
    for _ in range(150):
        camera = random_camera(rng)
        cameras = torch.from_numpy(camera)[None, None]
        rows = strips(int(rng.integers(2, 5)), side)[0 if rng.random() < 0.5 else -1]
        first, last = rows_seen(camera, Window(rows, (0, side)), side)
        picture = torch.rand(1, 1, 3, side, side)
        other = torch.full_like(picture, 1e9)
        other[..., first:last, :] = picture[..., first:last, :]
        found, expected = (rectify(each, cameras, side, rows) for each in (other, picture))
        assert torch.equal(found, expected), (camera, rows)
        spared.append(1 - (last - first) / side)
    assert np.mean(spared) > 0.25 and np.mean(np.array(spared) == 0) < 0.4, "so few rows are worth it"


def test_rows_are_those_that_a_straight_camera_sees():
    straight = np.zeros(14, np.float32)
    straight[:9] = [1, 0, 0.5, 0, -1, 0.5, 0, 0, 1]
    window = Window((512, 1024), (0, 2048))
    first, last = rows_seen(straight, window, 2048)
    assert 500 < first <= 511 and 1025 <= last < 1036
    straight[5] = 0.75  # the picture's middle is a quarter of a tile higher up
    assert rows_seen(straight, window, 2048)[0] == pytest.approx(first + 512, abs=1)
    assert rows_seen(straight, Window((1600, 2048), (0, 2048)), 2048) == (0, 0), "not in the picture"
    straight[WRAP] = 1
    assert rows_seen(straight, Window((1536, 2048), (0, 2048)), 2048)[0] == 0, "but of the repeat above"
    assert rows_seen(np.zeros(14, np.float32), window, 2048) == (0, 0)


# -- batches -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five samples as files, and packed at 96 and 48 px in blocks of a few rows; views and a sample without cameras."""
    root = tmp_path_factory.mktemp("set")
    names = [f"sample_{i:04d}" for i in range(5)]
    folders = write_set(root / "files", {name: f"material {name}" for name in names}, size=SIDE)
    write_cameras_of(folders[0], names[:4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SMALLEST_SIDE", 32)
        patch.setattr(records, "BLOCK_BYTES", 512)
        assert pack(*folders, root / "packed", progress=False).clean
    return root


def config(folder, kind: str, size: int = SIDE) -> DataConfig:
    named = {
        "files": {"input_dir": str(folder / "files" / "input"), "output_dir": str(folder / "files" / "output")},
        "packed": {"packed_dir": str(folder / "packed")},
        "built in": {"builtin": True, "builtin_count": 3, "builtin_cache": str(folder / "cache")},
        "rendered": {
            "packed_dir": str(folder / "packed"), "render": "online", "renders_per_epoch": 1, "mixtures": 0.5,
        },
    }  # fmt: skip
    return DataConfig(num_workers=0, image_size=size, **named[kind])


def batch(source, rows=None, augmentation=EVERY_TURN, alignment=TRAINING, epochs=(0, 1)):
    slots = [Slot(epoch, i, 1.0) for epoch in epochs for i in range(len(source.entries))]
    return load_batch(source, source.entries, slots, augmentation, alignment, 5, rows)


def on_device(made: MicroBatch) -> DeviceBatch:
    return to_device(made, 7, TransformConfig(), CPU)


def assert_rows_of(part, whole, rows, side: int) -> None:
    """Rows of a batch on the device, to the bit; and all that isn't a picture."""
    ours, theirs = on_device(part), on_device(whole) if isinstance(whole, MicroBatch) else whole
    for mine, all_of_it in zip(ours[:2], theirs[:2], strict=True):
        assert mine.shape[-2:] == (rows[1] - rows[0], side)
        assert torch.equal(mine, all_of_it[..., slice(*rows), :])
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.relighting.lamps, theirs.relighting.lamps)


@pytest.mark.parametrize("alignment", [None, TRAINING], ids=["as they are", "aligned"])
@pytest.mark.parametrize(
    ("kind", "side"),
    [("packed", SIDE), ("packed", SIDE // 2), ("packed", 60), ("files", SIDE), ("files", 60), ("built in", 48)],
)  # fmt: skip
def test_a_strips_batch_is_the_rows_of_the_whole_one(folder, kind, side, alignment):
    """Turned and flipped, some views without cameras, planes that repeat or don't, at halvings and other sides."""
    source = open_source(config(folder, kind, side), seed=3)
    whole = batch(source, alignment=alignment)
    assert {o % 2 for o in whole.orientations} == {0, 1}
    shown = on_device(whole)
    for count, index in ((2, 0), (2, 1), (3, 1), (4, 2)):
        rows = strips(count, side)[index]
        part = batch(source, rows, alignment=alignment)
        assert_rows_of(part, shown, rows, side)
        assert part.maps.numel() == whole.maps.numel() // count
        assert alignment is None or part.views.pixels.numel() < whole.views.numel()


def test_a_rendered_strip_is_of_the_whole_material(folder):
    source, rows, slots = open_source(config(folder, "rendered", 48), seed=3), (24, 48), [Slot(0, 0, 1.0)]
    part, whole = (
        load_batch(source, source.entries, slots, EVERY_TURN, TRAINING, 5, each) for each in (rows, None)
    )
    assert torch.equal(part.maps, whole.maps)
    assert_rows_of(part, whole, rows, 48)


@pytest.mark.parametrize("kind", ["packed", "files"])
def test_a_mixtures_strip_is_of_the_whole_mixture(folder, kind):
    source, rows = open_source(config(folder, kind), seed=3), strips(3)[1]
    part, whole = (batch(source, each, MIXED) for each in (rows, None))
    assert 1 < len(whole.mixture.at) < len(whole.keys)
    assert_rows_of(part, whole, rows, SIDE)
    assert part.mixture.partners.views.pixels.numel() < whole.mixture.partners.views.numel()


def test_a_stage_of_another_side_goes_on_with_its_own_rows(folder):
    source = open_source(config(folder, "packed"), seed=3).at(SIDE // 2)
    rows = strips(3, SIDE // 2)[1]
    assert_rows_of(batch(source, rows), batch(source), rows, SIDE // 2)


@pytest.mark.multiprocess
def test_loader_processes_give_the_same(folder):
    source, rows = open_source(config(folder, "packed"), seed=3), strips(2)[1]
    slots = [[Slot(0, i, 1.0) for i in range(3)], [Slot(0, i, 1.0) for i in range(3, 5)]]
    with batches_of(
        config(folder, "packed"), source, source.entries, slots, CPU, 2, augmentation=MIXED,
        alignment=TRAINING, relight=5, rows=rows,
    ) as loader:  # fmt: skip
        found = list(loader)
    for part, cut in zip(found, slots, strict=True):
        assert isinstance(part.views, Bands)
        whole = load_batch(source, source.entries, cut, MIXED, TRAINING, 5)
        assert_rows_of(part, whole, rows, SIDE)
    assert any(part.mixture for part in found)


@pytest.mark.parametrize("cameras", [True, False])
def test_filler_has_the_shape_of_what_it_stands_for(folder, cameras):
    source, rows = open_source(config(folder, "packed"), seed=3), strips(2)[1]
    real = batch(source, rows, None, TRAINING if cameras else None, epochs=[0])
    spare = filler(len(source.entries), SIDE, cameras=cameras, rows=rows)
    assert [x.shape for x in on_device(real)[:2]] == [x.shape for x in on_device(spare)[:2]]


# -- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", [None, TRAINING], ids=["as they are", "aligned"])
def test_no_more_of_a_packed_set_is_read_than_its_blocks(folder, alignment):
    source = open_source(config(folder, "packed"), seed=3)
    batch(source)  # opens the shards
    entries = len(source.entries)
    headers = bytes_read(lambda: batch(source, None, None, alignment, [0])) - entries * 17 * SIDE**2
    assert headers < entries * 2 * 4096
    for rows in strips(4):
        found = []
        read = bytes_read(lambda rows=rows, out=found: out.append(batch(source, rows, None, alignment, [0])))
        views = found[0].views.pixels if alignment else found[0].views
        wanted, border = (
            views.numel() + found[0].maps.numel(),
            entries * 17 * 2 * 8 * SIDE,
        )  # blocks of 8 rows
        assert wanted + headers <= read <= wanted + headers + border
        assert alignment is not None or wanted == entries * 17 * SIDE**2 // 4
