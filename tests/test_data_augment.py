"""Turned samples: views, maps and normals stay those of one scene."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from neuropbr_dist.config import DataConfig, TransformConfig
from neuropbr_dist.data.augment import Augmentation, turn_maps, turn_views
from neuropbr_dist.data.batch import MicroBatch
from neuropbr_dist.data.device import to_device
from neuropbr_dist.data.loader import batches_of, training_slots
from neuropbr_dist.data.order import SampleOrder
from neuropbr_dist.data.sources import BuiltinSource
from neuropbr_dist.materials.cameras import Camera
from neuropbr_dist.materials.lights import Lamp, Lighting, Sky
from neuropbr_dist.materials.views import linear_view

SIDE = 32
ORIENTATIONS = range(8)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """uint8 (8, S, S): a built-in material on slopes that a mistake would show on."""
    cache = str(tmp_path_factory.mktemp("cache"))
    source = BuiltinSource(DataConfig(builtin_count=2, image_size=SIDE, builtin_cache=cache), seed=3)
    maps = np.array(source.load(source.entries[1])[1])
    maps[5:] = normals(heights())
    return torch.from_numpy(maps)


def heights(n=SIDE):
    """A surface without any symmetry, and its finer self for derivatives."""
    y, x = np.meshgrid(np.linspace(1, -1, n), np.linspace(-1, 1, n), indexing="ij")
    return 0.3 * np.sin(3 * x + 1) * np.cos(2 * y) + 0.2 * x * x * y + 0.1 * x


def normals(height):
    """Encoded uint8 (3, H, W) of a height map whose rows go down: OpenGL, green up."""
    down, right = np.gradient(height, 2 / len(height))
    normal = np.stack([-right, down, np.ones_like(height)])
    normal /= np.linalg.norm(normal, axis=0)
    return np.rint((normal * 0.5 + 0.5) * 255)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_turned_normals_are_those_of_the_turned_surface(orientation):
    height = heights()
    maps = torch.zeros(8, SIDE, SIDE, dtype=torch.uint8)
    maps[5:] = torch.from_numpy(normals(height)).byte()
    turned = turn_views(torch.from_numpy(height), orientation).numpy()
    expected = normals(turned)
    difference = np.abs(turn_maps(maps, orientation)[5:].numpy() - expected)
    assert difference.max() <= 1  # 127.5 rounds to either side
    if orientation:  # without their X and Y following, they would be wrong
        assert np.abs(turn_views(maps, orientation)[5:].numpy() - expected).max() > 20


CAMERA = Camera(position=np.array([0.0, 0.0, 0.9]), target=np.zeros(3)).on_plane()
"""Straight from above: picture and plane share their axes."""


def lighting(orientation):
    """One lamp and a sky that is brighter on one side, both moved with the scene."""
    lamp = Lamp(turned_point([0.5, 0.2, 0.8], orientation), np.array([3.0, 2.0, 1.0]), 0.05)
    sky = Sky(np.full(3, 0.2), np.full(3, 0.3), lean=turned_point([0.3, -0.5, 0.0], orientation))
    return Lighting((lamp,), sky, exposure=3)


def turned_point(point, orientation):
    x, y, z = point
    if orientation >= 4:
        x = -x
    for _ in range(orientation % 4):
        x, y = -y, x
    return np.array([x, y, z])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_rendered_view_of_the_turned_maps_is_the_turned_view(material, orientation):
    def view(maps):
        picture = linear_view(maps.numpy(), CAMERA, lighting(orientation), SIDE)
        return torch.from_numpy(np.rint(np.clip(picture, 0, 1) * 255)).int()

    upright = linear_view(material.numpy(), CAMERA, lighting(0), SIDE)
    expected = turn_views(torch.from_numpy(np.rint(np.clip(upright, 0, 1) * 255)).int(), orientation)
    error = (view(turn_maps(material, orientation)) - expected).abs()
    assert error.max() <= 2
    if orientation:  # normals that don't follow give another picture
        assert (view(turn_views(material, orientation)) - expected).abs().float().mean() > 1


def test_orientations_are_what_they_are_called():
    picture = torch.tensor([[[1, 2], [3, 4]]])
    assert turn_views(picture, 1)[0].tolist() == [[2, 4], [1, 3]]  # counter-clockwise
    assert turn_views(picture, 4)[0].tolist() == [[2, 1], [4, 3]]  # left to right
    assert turn_views(picture, 6)[0].tolist() == [[3, 4], [1, 2]]  # top to bottom
    assert turn_views(picture, 2)[0].tolist() == [[4, 3], [2, 1]]


@pytest.mark.parametrize(
    ("flips", "rotations", "choices"),
    [(False, False, [0]), (True, False, [0, 2, 4, 6]), (False, True, [0, 1, 2, 3]), (True, True, range(8))],
)
def test_every_choice_comes_equally_often(flips, rotations, choices):
    augmentation = Augmentation(7, flips, rotations)
    counts = Counter(augmentation.orientation(epoch, f"clean/s{i}") for epoch in range(8) for i in range(250))
    assert sorted(counts) == list(choices)
    expected = 2000 / len(counts)
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 24.3  # p = 0.001 at most


def loaded(workers, world, seed=4):
    """Sample and epoch -> orientation over a run of two epochs."""
    source = BuiltinSource(
        DataConfig(builtin_count=6, image_size=16, builtin_cache=str(loaded.cache)), seed=1
    )
    order = SampleOrder(len(source.entries), global_batch=4, epochs=2, seed=9)
    seen = []
    for rank in range(world):
        slots = training_slots(order, 0, world, rank, batch_size=2)
        turns = Augmentation(seed, True, True)
        read = DataConfig(num_workers=workers)
        with batches_of(
            read, source, source.entries, slots, torch.device("cpu"), augmentation=turns
        ) as loader:
            for batch in loader:
                rows = zip(batch.keys, batch.orientations, batch.weight.tolist(), strict=True)
                seen += [(key, turn) for key, turn, weight in rows if weight]
    return sorted(seen)


@pytest.mark.multiprocess
def test_keyed_by_seed_epoch_and_sample_alone(tmp_path):
    loaded.cache = tmp_path
    reference = loaded(0, 1)
    assert len(reference) == 12 and len({key for key, _ in reference}) == 6
    assert loaded(2, 1) == loaded(0, 2) == reference
    assert loaded(0, 1, seed=5) != reference
    assert any(first != second for first, second in zip(reference[::2], reference[1::2], strict=True))


def test_on_the_device_each_sample_has_its_own(material):
    views = torch.arange(2 * 9 * SIDE * SIDE).remainder(251).byte().reshape(2, 3, 3, SIDE, SIDE)
    maps = torch.stack([material, material])
    plain = MicroBatch(views, maps, torch.ones(2), ["a", "b"])
    turned = plain._replace(orientations=[0, 5])
    transform, cpu = TransformConfig(), torch.device("cpu")
    before, after = (to_device(batch, 2, transform, cpu) for batch in (plain, turned))
    assert torch.equal(before.views[0], after.views[0]) and torch.equal(before.maps[0], after.maps[0])
    assert torch.equal(turn_views(before.views[1], 5), after.views[1])
    x, y, z = before.maps[1, 5:].flip(-1).rot90(1, (-2, -1))
    torch.testing.assert_close(after.maps[1, 5:], torch.stack([-y, -x, z]))
    assert torch.equal(after.maps[1, :5], turn_views(before.maps[1, :5], 5))
