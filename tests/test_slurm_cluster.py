"""The tests' own cluster: beside another one, and nothing of it is left."""

from __future__ import annotations

import psutil
import pytest

from tests.support.slurm import Cluster, running_cluster

pytestmark = pytest.mark.slurm


def hosts(cluster: Cluster) -> list[str]:
    return sorted(cluster.call("srun", "--nodes=2", "hostname").split())


def processes(cluster: Cluster) -> list[psutil.Process]:
    daemons = [psutil.Process(daemon.pid) for daemon in cluster.daemons.values()]
    return daemons + [child for daemon in daemons for child in daemon.children(recursive=True)]


def test_two_clusters_side_by_side():
    with running_cluster() as one:
        with running_cluster() as other:
            assert hosts(one) == hosts(other) == ["node1", "node2"]
            started = processes(other)
            assert len(started) >= 6  # munged, slurmctld, and for each node unshare and slurmd
        assert hosts(one) == ["node1", "node2"]
    assert not one.folder.exists() and not other.folder.exists()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
