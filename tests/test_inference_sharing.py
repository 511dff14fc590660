"""`launch/infer.py --sample-ranks K`: ranks that share a picture write what one rank writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.forked import Ended, Launch
from tests.support.train_runs import SINGLE_PROCESS_SAVES, whole_run
from tests.support.trained_run import trained_run

pytestmark = [SINGLE_PROCESS_SAVES, pytest.mark.multiprocess]

INFER = "from neuropbr_dist.commands.infer import run\nrun()\n"


def infer(out: Path, *words: str | Path, world: int = 1) -> Ended:
    given = ["--out-dir", str(out), "--device", "cpu", *map(str, words)]
    return Launch(given, world, program=INFER).wait()


@pytest.mark.parametrize("model", [pytest.param("batch norm", marks=pytest.mark.drill), "on the plane"])
def test_two_ranks_share_every_picture(tmp_path, model):
    """Files, tables and what is printed; bytes of pictures may be rounded otherwise."""
    checkpoint = trained_run()[0] if model == "batch norm" else whole_run()
    words = ["--checkpoint", checkpoint, "--sample-idx", "all", "--batch-size", "2", "--relight"]
    alone, shared = (
        infer(tmp_path / "alone", *words),
        infer(tmp_path / "shared", *words, "--sample-ranks", "2", world=2),
    )
    assert (alone.code, shared.code) == (0, 0), shared.err
    assert shared.err == "" and "2 ranks a picture on cpu, fp32" in shared.out
    count = alone.out.count("Wrote ")
    assert count > 5 and shared.out.count("Wrote ") == count, "the first rank alone speaks and writes"
    files = [path.relative_to(tmp_path / "alone") for path in sorted((tmp_path / "alone").rglob("*.*"))]
    assert files == [
        path.relative_to(tmp_path / "shared") for path in sorted((tmp_path / "shared").rglob("*.*"))
    ]
    maps = [
        file for file in files if file.name in ("albedo.png", "roughness.png", "metallic.png", "normal.png")
    ]
    assert len(maps) >= 20
    for file in maps:
        ours, theirs = (
            np.asarray(Image.open(tmp_path / way / file)).astype(int) for way in ("alone", "shared")
        )
        assert abs(ours - theirs).max() <= 1, file


def test_what_cannot_be_shared_is_one_line(tmp_path):
    words = ["--checkpoint", trained_run()[0]]
    ended = infer(tmp_path, *words, "--sample-ranks", "2")
    assert ended.code == 2 and ended.err == (
        "error: --sample-ranks 2, but 1 rank(s) were started; start as many: torchrun --nproc-per-node=2 "
        "launch/infer.py --sample-ranks 2 ...\n"
    )
    for more, named in (
        (["--sample-ranks", "0"], "--sample-ranks 0; allowed: 1 or more"),
        (["--sample-ranks", "2", "--tile", "64"], "--sample-ranks and --tile"),
    ):
        ended = infer(tmp_path, *words, *more)
        assert ended.code == 2 and named in ended.err
    ended = infer(tmp_path, *words, "--size", "20", "--sample-ranks", "2", world=2)
    assert ended.code == 2 and "strips of 20 px / 2 = 10 rows" in ended.err, ended.err
    assert not list(tmp_path.iterdir())
