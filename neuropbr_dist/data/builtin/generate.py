"""The built-in materials as a data set on disk, in the training guide's layout."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from neuropbr_dist.data.builtin.cache import (
    VERSION,
    material_name,
    sample_cameras,
    sample_name,
    sample_views,
)
from neuropbr_dist.data.cameras import CAMERAS_FILE, write_cameras
from neuropbr_dist.data.files.entries import Renders
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import read_json, remove_leftovers, replacing_folder, write_json, writing
from neuropbr_dist.materials.channels import MAP_SLICES
from neuropbr_dist.materials.families import check_size, material_maps
from neuropbr_dist.materials.noise import Array
from neuropbr_dist.processes import in_parallel

_MARKER = "builtin_materials.json"


def generate(
    out: Path,
    *,
    count: int,
    size: int,
    seed: int,
    workers: int,
    curriculum_dirty: bool = True,
    progress: bool = True,
) -> None:
    """Write samples 0 .. count - 1, one material each, as PNG files.

    `input/{clean,dirty}/sample_0000/{0,1,2}.png`, `input/cameras.json` (the true ones), `input/render_metadata.json`
    (sample to material, written last) and `output/<material>/{albedo,roughness,metallic,normal}.png` (roughness and metallic in one channel).
    Finished samples of an earlier, interrupted call are kept.

    Args:
        out: folder; missing, empty, or begun by an earlier call with the same seed and size that has ended.
        count: number of samples, 1 or more.
        size: side in pixels, at least 4.
        seed: key of the set, 0 or more.
        workers: processes; 0 or 1 works in this one.
        curriculum_dirty: write dirty views as well.
        progress: show a progress bar.

    Raises:
        UserError: if `count`, `size` or `seed` can't be; if `out` holds anything else, another seed or size,
            or more samples, or can't be written.
    """
    out = Path(out)
    if count < 1:
        raise UserError(f"count must be 1 or more, got {count}")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, got {seed}")
    check_size(size)
    with writing(out):
        _claim(out, {"version": VERSION, "seed": seed, "size": size}, count)
        _write_samples(out, count, size, seed, workers, curriculum_dirty, progress)


def _write_samples(
    out: Path, count: int, size: int, seed: int, workers: int, with_dirty: bool, progress: bool
) -> None:
    make = partial(_write_sample, out, seed, size, with_dirty)
    with tqdm(total=count, unit="sample", desc=f"built-in materials in {out}", disable=not progress) as bar:
        for _ in in_parallel(make, range(count), workers, chunk=1):
            bar.update(1)
    cameras = {sample_name(index): sample_cameras(seed, index) for index in range(count)}
    write_cameras(out / "input" / CAMERAS_FILE, cameras)
    names = {sample_name(index): material_name(seed, index) for index in range(count)}
    write_json(out / "input" / "render_metadata.json", names, indent=2)


def _claim(out: Path, wanted: dict[str, int], count: int) -> None:
    """Mark a new folder as ours, or see that an old one is ours and fits."""
    marker = out / _MARKER
    if not marker.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(
                f"{out} is not empty and was not begun by this command: name a new or empty folder"
            )
        out.mkdir(parents=True, exist_ok=True)
        write_json(marker, wanted, indent=2)
        return
    found = read_json(marker)
    if found != wanted:
        raise UserError(f"{out} holds built-in materials with {found}, not {wanted}: name another folder")
    for folder in (out / "input" / "clean", out / "input" / "dirty", out / "output"):
        remove_leftovers(folder)
    beyond = [p.name for p in (out / "input").glob("*/sample_*") if int(p.name.split("_")[1]) >= count]
    if beyond:
        raise UserError(
            f"{out} already holds {max(beyond)}, beyond the {count} samples asked for: ask for more"
        )


def _write_sample(out: Path, seed: int, size: int, with_dirty: bool, index: int) -> None:
    """Write what is missing of a sample; each of its folders appears whole, by one rename."""
    target = out / "output" / material_name(seed, index)
    kinds: tuple[Renders, ...] = ("clean", "dirty") if with_dirty else ("clean",)
    missing = [s for s in kinds if not (out / "input" / s / sample_name(index)).exists()]
    if target.exists() and not missing:
        return
    maps = material_maps(seed, index, size)
    if not target.exists():
        _write_pictures(target, {name: maps[channels] for name, channels in MAP_SLICES.items()})
    for renders in missing:
        views = sample_views(maps, seed, index, renders)
        _write_pictures(
            out / "input" / renders / sample_name(index), {str(k): view for k, view in enumerate(views)}
        )


def _write_pictures(folder: Path, pictures: dict[str, Array]) -> None:
    """Write PNG files `<name>.png` from uint8 (3, S, S) or (1, S, S)."""
    with replacing_folder(folder) as temporary:
        for name, picture in pictures.items():
            pixels = picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)
            Image.fromarray(pixels).save(temporary / f"{name}.png", compress_level=3)
