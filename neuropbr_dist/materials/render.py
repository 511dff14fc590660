"""Pictures of a material: an endless plane of its repeats, seen by cameras. In torch.

A pixel depends on the scene, the key and its own place alone: pictures can be made by strips of rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from neuropbr_dist.materials import lens
from neuropbr_dist.materials.decoding import linear_maps, linear_to_srgb
from neuropbr_dist.materials.plane import EYE, MATRIX
from neuropbr_dist.materials.scene import EncodedScene, decode_scene
from neuropbr_dist.materials.shading import Surface, environment_light, lamp_light, sky_blur, surface
from neuropbr_dist.materials.surroundings import Surroundings, irradiance_at, sky_radiance
from neuropbr_dist.materials.vectors import column, dot, unit

SUPERSAMPLED_UP_TO = 512
"""Pictures of this side or a smaller one take 2 x 2 samples a pixel."""
_POINTS_AT_ONCE = 1 << 23  # temporaries of 100 MB a vector
_POINTS_IN_CACHE = 1 << 14  # of a processor
_OUT_OF_FOCUS = 48  # side of the picture that smudges show, enlarged smoothly: about 2 % of the picture
_COARSE = 64  # side of the maps that it is made of

Rows = tuple[int, int]
"""The first row and the one after the last."""


class Plane(NamedTuple):
    """A material, ready to be looked up anywhere on the plane."""

    texels: Tensor
    """(B, 8, S + 2, S + 2) linear albedo, roughness, metallic, normal; with a texel of the next repeats around."""
    albedo: Tensor
    """(B, 3, 1, 1) its mean."""


class View(NamedTuple):
    """V pictures of each of B materials."""

    plane: Plane
    """Planes of the B materials."""
    camera: Tensor
    """Cameras (B, V, 14), see `materials.plane.encode`."""
    scene: EncodedScene
    """Scenes with dimensions (B, V)."""
    surroundings: Tensor | None
    """Stacks (B * V, L, 3, h, w) of the scenes' environments; None without any."""


def render(
    maps: Tensor,
    scenes: Tensor,
    cameras: Tensor,
    keys: Tensor,
    side: int,
    environments: Tensor | None = None,
    *,
    dirt: bool = True,
    samples: int | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """Render pictures of materials. Nothing is random, nothing waits for the device.

    Args:
        maps: (B, 8, S, S) as `decode_maps` gives them: sRGB albedo, roughness, metallic in [0, 1], unit normals.
        scenes: (B, V, `SCENE`), see `scene.encode_scene`.
        cameras: (B, V, 14) true ones with an eye, see `plane.encode`; the plane repeats.
        keys: (B, V) int64; a pixel's noise is a hash of the key and its place.
        side: of the pictures, in pixels.
        environments: (E, L, 3, h, w) that scenes name, see `environment.read_environments`.
        dirt: False leaves out shadows, smudges and scratches, and saves their time where no scene has them.
        samples: a pixel's samples in a row; None: 2 up to `SUPERSAMPLED_UP_TO`, else 1.
        rows: of the pictures; None: all.

    Returns:
        (B, V, 3, rows, side) sRGB in [0, 1], not quantised, of the maps' type.
    """
    samples = samples or (2 if side <= SUPERSAMPLED_UP_TO else 1)
    plane, rows = repeating(maps), rows or (0, side)
    coarse = repeating(_reduced(maps)) if dirt else None
    pictures = []
    for some in _views_at_once(scenes, (side * samples) ** 2):
        scene = decode_scene(scenes[:, some].to(maps))
        around = (
            None
            if environments is None
            else environments[scene.environment[..., 0].flatten().long()].to(maps)
        )
        view = View(plane, cameras[:, some].to(maps), scene, around)
        blurred = _out_of_focus(view._replace(plane=coarse), side) if coarse else None
        strips = [
            _recorded(view, blurred, keys[:, some], side, samples, strip)
            for strip in _strips(view, side * samples * samples, rows)
        ]
        pictures.append(torch.cat(strips, dim=-2))
    return torch.cat(pictures, dim=1)


def _recorded(
    view: View, blurred: Tensor | None, keys: Tensor, side: int, samples: int, rows: Rows
) -> Tensor:
    """Return rows of pictures (B, V, 3, rows, side) in sRGB, through a dirty lens where there is a blurred picture."""
    scene = view.scene
    light = _exposed(view, side, samples, rows, shadow=blurred is not None)
    if blurred is not None:
        u, v = picture_grid(light, side, rows)
        dx, dy = (column(shift) for shift in scene.shift.split(1, dim=-1))
        soft = _enlarged(blurred, u, v).reshape(light.shape)
        light = lens.smudged(light, soft, scene.smudges, u - dx, v - dy)
        light = lens.scratched(light, scene.scratches, u - dx, v - dy, side)
    value = lens.sensed(light, scene.gain, scene.noise, lens.grain(keys, rows, side, light.dtype))
    return linear_to_srgb(value.clamp(0, 1))


def _out_of_focus(coarse: View, side: int) -> Tensor:
    """Return the small picture (B, V, 3, h, h) that smudges show: whole, whatever the rows are."""
    return linear_picture(coarse, min(side, _OUT_OF_FOCUS), 1, shadow=True)


def _enlarged(picture: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return pictures (B, V, 3, h, h) at picture coordinates: (B * V, 3, H, W)."""
    flat = picture.flatten(0, 1)
    place = torch.stack(torch.broadcast_tensors(2 * u - 1, 2 * v - 1), dim=-1).expand(len(flat), -1, -1, -1)
    return F.grid_sample(flat, place, "bicubic", "border", align_corners=False)


def _views_at_once(scenes: Tensor, points: int) -> list[slice]:
    """Return the views (B, V) to be rendered together: all, or one after the other where that would take much memory.

    Compiled code holds little between its inputs and its outputs.
    """
    count = scenes.shape[1]
    all_at_once = torch.compiler.is_compiling() or scenes.shape[0] * count * points <= _POINTS_AT_ONCE
    return [slice(0, count)] if all_at_once else [slice(v, v + 1) for v in range(count)]


def repeating(maps: Tensor) -> Plane:
    """Return the plane of maps (B, 8, S, S), see `render`."""
    linear = linear_maps(maps)
    # In float64, so that the order of the sum doesn't show.
    albedo = linear[:, :3].double().mean((2, 3), keepdim=True).to(linear.dtype)
    return Plane(F.pad(linear, (1, 1, 1, 1), mode="circular"), albedo)


def _reduced(maps: Tensor) -> Tensor:
    """Return maps of `_COARSE` texels or less."""
    small = F.adaptive_avg_pool2d(maps, min(_COARSE, maps.shape[-1]))
    return torch.cat([small[:, :5], unit(small[:, 5:])], dim=1)


def linear_picture(view: View, side: int, samples: int, *, shadow: bool) -> Tensor:
    """Return linear pictures (B, V, 3, side, side), exposed, not clipped, without the lens's dirt.

    Args:
        samples: a pixel's samples in a row.
        shadow: let the casters shade the key lamps.
    """
    strips = _strips(view, side * samples * samples, (0, side))
    return torch.cat([_exposed(view, side, samples, rows, shadow=shadow) for rows in strips], dim=-2)


def _exposed(view: View, side: int, samples: int, rows: Rows, *, shadow: bool) -> Tensor:
    """Return rows of `linear_picture`."""
    fine = (rows[0] * samples, rows[1] * samples)
    light = radiance(view, *picture_grid(view.camera, side * samples, fine), shadow=shadow)
    if samples > 1:
        light = F.avg_pool2d(light.flatten(0, 1), samples).unflatten(0, light.shape[:2])
    return light * column(view.scene.exposure)


def _strips(view: View, points: int, rows: Rows) -> list[Rows]:
    """Return the rows in strips that are shaded at once: on a processor, what its cache holds.

    Args:
        points: that a row of a picture takes.
    """
    step = rows[1] - rows[0]
    if view.camera.device.type == "cpu" and not torch.compiler.is_compiling():
        step = max(1, _POINTS_IN_CACHE // (points * view.camera.shape[:2].numel()))
    return [(top, min(top + step, rows[1])) for top in range(*rows, step)]


def picture_grid(like: Tensor, side: int, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return picture coordinates u (1, side) and v (rows, 1) of pixel centres, of a tensor's type and device."""
    centres = (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side
    return centres[None, :], centres[slice(*rows), None]


def radiance(view: View, u: Tensor, v: Tensor, *, shadow: bool) -> Tensor:
    """Return the light (B, V, 3, H, W) that reaches the cameras.

    Args:
        u, v: picture coordinates that broadcast to (H, W).
    """
    points = on_plane(view.camera, u, v)
    return shaded(view, look_up(view.plane, points), points, shadow=shadow)


def shaded(view: View, material: Tensor, points: Tensor, *, shadow: bool) -> Tensor:
    """Return the light (B, V, 3, H, W) that points (B, V, 3, H, W) of a material (B, V, 8, H, W) send to the camera."""
    scene = view.scene
    seen = surface(material, unit(column(view.camera[..., EYE]) - points))
    legacy = column(scene.legacy)
    lit = lamp_light(
        Surface(*(part.unsqueeze(-4) for part in seen)),
        points.unsqueeze(-4),
        scene.lamps,
        legacy.unsqueeze(-4),
    )
    key, others = lit[..., 0, :, :, :], lit[..., 1:, :, :, :].sum(-4)
    if shadow:
        key = key * lens.reaching(scene.strokes, scene.penumbra, points)
    return _from_afar(view, seen) + others + key


def on_plane(cameras: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return the plane's points (..., 3, H, W) that cameras (..., 14) show at picture coordinates."""
    a, b, c = cameras[..., MATRIX].unflatten(-1, (3, 3)).unbind(-2)
    cross = torch.linalg.cross  # the inverse's columns, but for the determinant, which cancels
    seen = column(cross(b, c)) * u + column(cross(c, a)) * v + column(cross(a, b))
    x, y, w = seen.split(1, dim=-3)
    return torch.cat([x / w, y / w, torch.zeros_like(x)], dim=-3)


def look_up(plane: Plane, points: Tensor) -> Tensor:
    """Return the materials (B, V, 8, H, W) at points (B, V, 3, H, W) of the plane, bilinearly."""
    size = plane.texels.shape[-1] - 2
    across, up = points[..., 0, :, :] + 0.5, points[..., 1, :, :] + 0.5
    tile = torch.stack([across - across.floor(), 1 - (up - up.floor())], dim=-1)
    place = (2 * tile - 1) * (size / (size + 2))
    found = F.grid_sample(
        plane.texels, place.flatten(1, 2), align_corners=False
    )  # the views below each other
    return found.unflatten(2, place.shape[1:3]).transpose(1, 2)


def _from_afar(view: View, seen: Surface) -> Tensor:
    """Return the light of sky and surroundings; reflections that point below the surface show the plane itself."""
    scene = view.scene
    legacy = column(scene.legacy)
    blur = sky_blur(seen.roughness, legacy)
    mirrored = 2 * dot(seen.normal, seen.view) * seen.normal - seen.view
    radiance = sky_radiance(scene.gradient, scene.windows, mirrored, blur)
    irradiance = irradiance_at(scene.irradiance, seen.normal)
    albedo = view.plane.albedo.unsqueeze(1)
    up = torch.zeros_like(albedo)
    up[..., 2, :, :] = 1
    up = up.expand(*view.camera.shape[:2], -1, -1, -1)
    from_above = irradiance_at(scene.irradiance, up)
    if view.surroundings is not None:
        around = Surroundings(view.surroundings, scene.environment.flatten(0, 1))
        radiance = radiance + around.radiance(mirrored, seen.roughness)
        irradiance = irradiance + around.irradiance(seen.normal)
        from_above = from_above + around.irradiance(up)
    ground = albedo * (from_above / math.pi)
    above = (0.5 + mirrored[..., 2:, :, :] / (0.15 + blur)).clamp(0, 1)
    return environment_light(seen, ground + (radiance - ground) * above, irradiance, legacy)
