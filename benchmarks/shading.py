"""The renderer: its time on a GPU, and its pictures beside a path tracer's.

    python -m benchmarks.shading speed --size 2048 --batch 1
    python -m benchmarks.shading speed --size 256 --batch 32
    pip install --no-deps --target DIR mitsuba drjit
    PYTHONPATH=DIR python -m benchmarks.shading tracer

`speed` takes random built-in materials in random dirty scenes: ms of three views a sample, rendered, and rectified by their
cameras; eager and compiled; memory at most. `tracer` needs Mitsuba 3, which is no dependency: its principled BSDF, on the
plane with a normal map, under the same lamps (spheres) and the same sky (a picture of it).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.attention import median_ms
from benchmarks.setting import need_gpu, write_figures
from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, new_parser
from neuropbr_dist.materials.decoding import decode_maps
from neuropbr_dist.materials.families import material_maps
from neuropbr_dist.materials.plane import encode
from neuropbr_dist.materials.rectify import rectify
from neuropbr_dist.materials.render import render
from neuropbr_dist.materials.scene import encode_scene, random_scene

MATERIALS = 4  # drawn for a batch; more would take minutes


def inputs(batch: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return maps, scenes, cameras and keys of `batch` samples, as `render` takes them."""
    drawn = [torch.from_numpy(material_maps(0, i, size)) for i in range(min(batch, MATERIALS))]
    maps = decode_maps(torch.stack([drawn[i % len(drawn)] for i in range(batch)]).to(device))
    scenes = [random_scene(np.random.default_rng([0, i]), dirty=True) for i in range(batch)]
    cameras = np.stack([np.stack([encode(c.on_plane(), True) for c in scene.cameras]) for scene in scenes])
    numbers = torch.from_numpy(np.stack([encode_scene(scene) for scene in scenes])).to(device)
    return maps, numbers, torch.from_numpy(cameras), torch.arange(batch * 3).reshape(batch, 3).to(device)


def speed(size: int, batch: int) -> list[dict[str, object]]:
    """Measure on this machine's first GPU, and print a line a variant."""
    need_gpu("shading speed")
    device = torch.device("cuda")
    maps, scenes, cameras, keys = inputs(batch, size, device)
    on_device = cameras.to(device)
    rows: list[dict[str, object]] = []
    for name, function in (("eager", render), ("compiled", torch.compile(render, fullgraph=True))):
        for dirt in (False, True):

            def pictures(function: Callable[..., Tensor] = function, dirt: bool = dirt) -> Tensor:
                with torch.no_grad():
                    return function(maps, scenes, on_device, keys, size, dirt=dirt)

            began = time.perf_counter()
            made = pictures()
            torch.cuda.synchronize()
            first = time.perf_counter() - began
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            row: dict[str, object] = {
                "variant": name,
                "dirt": dirt,
                "size": size,
                "batch": batch,
                "first_s": round(first, 2),
            }
            row["render_ms"] = round(median_ms(pictures), 2)
            row["peak_mib"] = (torch.cuda.max_memory_allocated() - before) >> 20
            row["rectify_ms"] = round(median_ms(partial(rectify, made, cameras, size)), 2)
            rows.append(row)
            print(row, flush=True)
    return rows


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `launch/benchmark.py shading`."""
    p = new_parser(__doc__ or "", prog)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    add_debug(p)
    p.add_argument("what", choices=["speed", "tracer"], help="times on a GPU, or pictures beside Mitsuba's")
    p.add_argument("--size", type=int, default=256, metavar="PX", help="side of maps and views (default 256)")
    p.add_argument("--batch", type=int, default=32, metavar="N", help="speed: samples (default 32)")
    p.add_argument(
        "--samples", type=int, default=256, metavar="N", help="tracer: paths a pixel (default 256)"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Measure, and print a line a row; write them as JSON."""
    args = parser(prog).parse_args(argv)
    if args.what == "speed":
        rows = speed(args.size, args.batch)
    else:
        from benchmarks.shading_tracer import compare

        rows = compare(args.size, args.samples)
    write_figures(args.out, {"rows": rows})


if __name__ == "__main__":
    run()
