"""Pictures of materials on the host: the built-in set's stored views, and single ones in linear light."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from neuropbr_dist.materials.channels import quantise
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.materials.families import random_stream
from neuropbr_dist.materials.lights import Lighting
from neuropbr_dist.materials.plane import PlaneCamera, encode
from neuropbr_dist.materials.render import View, linear_picture, render, repeating
from neuropbr_dist.materials.scene import Scene, builtin_scene, decode_scene, encode_scene


def render_views(maps: np.ndarray, seed: int, index: int, *, dirty: bool) -> np.ndarray:
    """Render the three stored pictures of a built-in material.

    Args:
        maps: uint8 (8, S, S), as `material_maps` gives them.
        seed, index: key of cameras, light and dirt. Clean and dirty views share cameras and light.
        dirty: add a lamp shadow, lens smudges and scratches, noise, exposure and white-balance shifts.

    Returns:
        uint8 sRGB (3, 3, S, S): view, channel, row, column; the same bytes on any number of threads.

    Raises:
        UserError: if seed or index is negative.
    """
    scene = builtin_scene(seed, index, dirty=dirty)
    cameras = np.stack([encode(camera.on_plane(), True) for camera in scene.cameras])
    keys = torch.from_numpy(random_stream(seed, index, 3).integers(2**62, size=(1, 3)))
    with one_thread(), torch.no_grad():
        found = render(
            _decoded(maps),
            torch.from_numpy(encode_scene(scene))[None],
            torch.from_numpy(cameras)[None],
            keys,
            maps.shape[1],
            dirt=dirty,
        )
    return quantise(found[0].numpy())


def linear_view(
    maps: np.ndarray, camera: PlaneCamera, lighting: Lighting, side: int, samples: int = 2
) -> np.ndarray:
    """Render a view without dirt in linear light.

    Args:
        maps: uint8 (8, S, S).
        camera: with an eye.
        side: of the picture, in pixels.
        samples: a pixel's samples in a row.

    Returns:
        float32 (3, side, side), exposed, not clipped.
    """
    numbers = torch.from_numpy(encode_scene(Scene((), (lighting,))))[None]
    scene = decode_scene(numbers).without_absent(len(lighting.lamps), len(lighting.sky.windows))
    with one_thread(), torch.no_grad():
        plane = repeating(_decoded(maps))
        view = View(plane, torch.from_numpy(encode(camera, True))[None, None], scene, None)
        return linear_picture(view, side, samples, shadow=False)[0, 0].numpy()


def _decoded(maps: np.ndarray) -> Tensor:
    return decode_maps(torch.from_numpy(np.array(maps))[None])


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work in the calling thread alone: how work is cut over threads shows in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
