"""`cameras.json`: what is read is what was written, and whatever else a file may hold is named."""

import copy
import json
import os
import random
import string

import numpy as np
import pytest

from neuropbr_dist.data.builtin import generate
from neuropbr_dist.data.builtin.cache import sample_cameras
from neuropbr_dist.data.cameras import SampleCameras, read_cameras, write_cameras
from neuropbr_dist.errors import UserError
from neuropbr_dist.materials.plane import PlaneCamera, encode, shifted

CAMERA = {"map_to_view": [[0.9, 0.1, 0.5], [0.1, -0.8, 0.5], [0.05, 0.1, 1.0]], "eye": [0.1, 0.2, 1.1], "confidence": 0.8}  # fmt: skip
CONTENT = {
    "version": 1,
    "wrap": True,
    "samples": {"sample_0000": {"clean": [CAMERA, None, copy.deepcopy(CAMERA)]}},
}


def written(tmp_path, content):
    path = tmp_path / "cameras.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def changed(value, *place):
    """`CONTENT` with something else in a place of the sample."""
    content = copy.deepcopy(CONTENT)
    node = content["samples"]["sample_0000"]
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    return content


def test_what_is_read_is_what_was_written(tmp_path):
    cameras = sample_cameras(0, 3).views["clean"]
    samples = {
        "a": SampleCameras({"clean": cameras}, wrap=True),
        "b": SampleCameras({"clean": (None, *cameras[:2]), "dirty": (*cameras[:2], None)}),
        "c": SampleCameras(
            {"dirty": (None, None, PlaneCamera(cameras[0].map_to_view, None, 0.25))}, wrap=True
        ),
    }
    write_cameras(tmp_path / "cameras.json", samples)
    found = read_cameras(tmp_path / "cameras.json")
    assert found.faults == [] and list(found.samples) == list(samples)
    for name, sample in samples.items():
        assert found.samples[name].wrap == sample.wrap
        for renders in ("clean", "dirty"):
            mine, theirs = found.samples[name].encoded(renders), sample.encoded(renders)
            np.testing.assert_allclose(mine, theirs, atol=1e-7)
    assert found.samples["a"].encoded("dirty").any(), "without dirty, clean is meant"
    assert not found.samples["c"].encoded("clean").any()
    assert len((tmp_path / "cameras.json").read_text().splitlines()) == len(samples) + 2


def test_files_hold_the_camera_nearest_to_the_tile(tmp_path):
    near = sample_cameras(0, 3).views["clean"]
    far = tuple(shifted(camera, (2, -3)) for camera in near)
    path = tmp_path / "cameras.json"
    write_cameras(path, {"a": SampleCameras({"clean": far}, wrap=True)})
    np.testing.assert_allclose(
        read_cameras(path).samples["a"].encoded("clean"), np.stack([encode(c, True) for c in near]), atol=1e-6
    )
    write_cameras(path, {"a": SampleCameras({"clean": far})})
    np.testing.assert_allclose(
        read_cameras(path).samples["a"].encoded("clean"), np.stack([encode(c, False) for c in far]), atol=1e-5
    )


def test_generate_writes_the_true_cameras(tmp_path):
    generate(tmp_path, count=2, size=8, seed=4, workers=0, progress=False)
    found = read_cameras(tmp_path / "input" / "cameras.json")
    assert found.faults == []
    for index in range(2):
        sample = found.samples[f"sample_{index:04d}"]
        assert sample.wrap
        np.testing.assert_allclose(
            sample.encoded("dirty"), sample_cameras(4, index).encoded("dirty"), atol=1e-6
        )


def test_no_camera_that_is_wrong_is_written(tmp_path):
    wrong = PlaneCamera(-np.eye(3))
    with pytest.raises(ValueError, match="sample_7"):
        write_cameras(tmp_path / "cameras.json", {"sample_7": SampleCameras({"clean": (wrong, None, None)})})
    assert list(tmp_path.iterdir()) == []


SINGULAR = [[1, 2, 3], [2, 4, 6], [0, 0, 1]]
MIRRORED = [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (changed(SINGULAR, "clean", 2, "map_to_view"), "clean, view 2: map_to_view can't be inverted"),
        (changed(np.negative(CAMERA["map_to_view"]).tolist(), "clean", 0, "map_to_view"), "behind the camera"),
        (changed(MIRRORED, "clean", 0, "map_to_view"), "mirrors"),
        (changed([[1, 0], [0, 1]], "clean", 0, "map_to_view"), "3 x 3 numbers"),
        (changed([1, 0, 0, 0, 1, 0, 0, 0, 1], "clean", 0, "map_to_view"), "3 x 3 numbers"),
        (changed([[1, 0, True], [0, 1, 0], [0, 0, 1]], "clean", 0, "map_to_view"), "3 x 3 numbers"),
        (changed([[1, 0, "0"], [0, 1, 0], [0, 0, 1]], "clean", 0, "map_to_view"), "3 x 3 numbers"),
        (changed([[1, 0, None], [0, 1, 0], [0, 0, 1]], "clean", 0, "map_to_view"), "3 x 3 numbers"),
        (changed(None, "clean", 0, "map_to_view"), "3 x 3 numbers"),
        (changed([[1, 0, float("nan")], [0, -1, 0], [0, 0, 1]], "clean", 0, "map_to_view"), "finite"),
        (changed([[1, 0, 10**400], [0, -1, 0], [0, 0, 1]], "clean", 0, "map_to_view"), "too large"),
        (changed([0, 0, -1], "clean", 0, "eye"), "below the surface"),
        (changed([0, 1e308, 1], "clean", 0, "eye"), "up to 1e+06 tiles away"),
        (changed([0, 0, 1e-320], "clean", 0, "eye"), "z from 1e-06"),
        (changed([0, 0], "clean", 0, "eye"), "3 numbers"),
        (changed([0, 0, float("inf")], "clean", 0, "eye"), "finite"),
        (changed(1.2, "clean", 0, "confidence"), "confidence is 1.2"),
        (changed(None, "clean", 0, "confidence"), "a number"),
        (changed([1], "clean", 0, "confidence"), "a number"),
        (changed(1, "clean", 0, "fov"), "allowed: null, or map_to_view, eye, confidence"),
        (changed([], "clean", 0), "allowed: null, or"),
        (changed("", "clean", 0), "allowed: null, or"),
        (changed([None, None], "clean"), "clean: 2; allowed: a list of 3"),
        (changed([None] * 4, "dirty"), "dirty: 4; allowed: a list of 3"),
        (changed(None, "dirty"), "dirty: null"),
        (changed({}, "clean"), "clean: {}"),
        (changed(1, "wrap"), "wrap is 1"),
        (changed([None] * 3, "views"), "unknown key 'views'"),
        ({**CONTENT, "samples": {"sample_0000": []}}, "allowed: an object with clean"),
        ({**CONTENT, "samples": {"sample_0000": {"wrap": True}}}, "allowed: an object with clean"),
    ],
)  # fmt: skip
def test_a_sample_that_is_wrong_is_named_and_left_out(tmp_path, content, fault):
    found = read_cameras(written(tmp_path, content))
    (name,) = content["samples"]
    assert found.samples == {} and len(found.faults) == 1
    assert found.faults[0].samples == (name,)
    assert found.faults[0].message.startswith(f"{tmp_path / 'cameras.json'}: {name}: ")
    assert fault in found.faults[0].message and "\n" not in found.faults[0].message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**CONTENT, "version": 2}, "version 2; this release reads 1"),
        ({**CONTENT, "version": True}, "version true"),
        ({"samples": {}}, "version null"),
        ({**CONTENT, "wrap": "yes"}, 'wrap is "yes"'),
        ({**CONTENT, "sample": {}}, "unknown key 'sample'"),
        ({"version": 1}, "not a camera file"),
        ([], "not a camera file"),
        ("", "not JSON at line 1"),
        ('{"version": 1, "samples": {"a": {}, "a": {}}}', "'a' appears more than once"),
        ("[" * 200_000, "nested too deeply"),
        ("9" * 5000, "digits"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, content, message):
    with pytest.raises(UserError) as caught:
        read_cameras(written(tmp_path, content))
    assert message in str(caught.value) and str(tmp_path / "cameras.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=path.name):
            read_cameras(path)
    path = written(tmp_path, CONTENT)
    os.truncate(path, 2 << 30)  # sparse
    with pytest.raises(UserError, match="2,147,483,648 bytes"):
        read_cameras(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not UTF-8"):
        read_cameras(path)


ODD = [None, True, -1, 1e308, -1e308, 1e-320, float("nan"), float("inf"), 10**400, "", "\ud800", [], {}, [[]], [None] * 3, {"clean": 1}]  # fmt: skip


def mutate(rng: random.Random, node):
    """Somewhere in a tree: another value, one too many, one too few, or another name."""
    if isinstance(node, dict) and node and rng.random() < 0.9:
        key = rng.choice(list(node))
        choice = rng.random()
        if choice < 0.1:
            node["".join(rng.choices(string.printable, k=3))] = node.pop(key)
        elif choice < 0.15:
            del node[key]
        else:
            node[key] = mutate(rng, node[key])
        return node
    if isinstance(node, list) and node and rng.random() < 0.9:
        place = rng.randrange(len(node))
        choice = rng.random()
        if choice < 0.1:
            node.insert(place, copy.deepcopy(node[place]))
        elif choice < 0.2:
            del node[place]
        else:
            node[place] = mutate(rng, node[place])
        return node
    return copy.deepcopy(rng.choice(ODD)) if rng.random() < 0.7 else rng.uniform(-3, 3)


def test_two_thousand_forgeries_are_read_or_refused(tmp_path):
    rng, refused = random.Random(0), 0
    path = tmp_path / "cameras.json"
    for _ in range(2000):
        content = mutate(rng, mutate(rng, copy.deepcopy(CONTENT)))
        text = json.dumps(content)
        if rng.random() < 0.1:
            text = text[: rng.randrange(len(text))]
        path.write_text(text)
        try:
            found = read_cameras(path)
        except UserError:
            refused += 1
            continue
        refused += len(found.faults)
        for sample in found.samples.values():
            assert np.isfinite(sample.encoded("clean")).all() and np.isfinite(sample.encoded("dirty")).all()
    assert 1000 < refused < 2000
