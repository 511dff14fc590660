"""`slurm/infer.sbatch` on a real Slurm: an array, one sample a task."""

from __future__ import annotations

import sys

import pytest

from tests.support.distributed import ROOT
from tests.support.slurm import running_cluster
from tests.support.trained_run import trained_run


@pytest.mark.slurm
def test_every_task_of_an_array_infers_its_sample(tmp_path):
    run, _, _ = trained_run()
    for name in ("launch", "slurm", "neuropbr_dist"):
        (tmp_path / name).symlink_to(ROOT / name)  # out/ lies in the project's folder
    with running_cluster() as cluster:
        job = cluster.submit(
            "--array=1-2", f"--chdir={tmp_path}", "slurm/infer.sbatch", "--checkpoint", str(run),
            "--device", "cpu", PYTHON=sys.executable, OMP_NUM_THREADS="1",
        )  # fmt: skip
        cluster.until(lambda: not cluster.call("squeue", "-h", "-j", job), "gone")
        logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
        assert cluster.job(f"{job}_1")["JobState"] == "COMPLETED", logs
    for sample in (1, 2):
        maps = {path.name for path in (tmp_path / "out" / f"sample_{sample:04d}").rglob("*.png")}
        assert {"albedo.png", "roughness.png", "metallic.png", "normal.png"} <= maps, logs
