"""`slurm/pack.sbatch` on a real Slurm: warned in the middle, it goes back into the queue and goes on."""

from __future__ import annotations

import sys

import pytest

from neuropbr_dist.data.packed.source import PackedSource
from tests.support.distributed import ROOT
from tests.support.material_files import write_set
from tests.support.slurm import running_cluster


@pytest.mark.slurm
def test_a_warned_packer_is_requeued_and_goes_on(tmp_path):
    metadata = {f"sample_{i:04d}": f"material_{i:02d}" for i in range(40)}
    pictures = write_set(tmp_path, metadata, renders=("clean", "dirty"), size=256)
    for name in ("launch", "slurm", "neuropbr_dist"):
        (tmp_path / name).symlink_to(ROOT / name)
    dest = tmp_path / "packed"
    journal = dest / "journal.jsonl"

    def noted():
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    with running_cluster() as cluster:
        job = cluster.submit(
            "--cpus-per-task=2", f"--chdir={tmp_path}", "slurm/pack.sbatch", *pictures, dest,
            PYTHON=sys.executable, OMP_NUM_THREADS="1",
        )  # fmt: skip
        cluster.until(lambda: noted() > 5, "some records noted", job=job)
        cluster.call("scancel", "--batch", "--signal=USR1", job)
        ended = cluster.finish(job)
        log = (tmp_path / f"neuropbr-pack-{job}.log").read_text()
        assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "1", log
    assert f"Requeueing job {job}" in log and "start 2: 2 CPUs" in log
    assert noted() == 1 + 80 + 40, "what was noted before the warning was not done again"
    source = PackedSource(dest, 1)
    source.check_shards()
    assert len(source.entries) == 80
