"""Devices, facts that must be the same on every rank, and small exchanges."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from neuropbr_dist.cluster import Environment, check_alike, pick_device
from neuropbr_dist.cluster.process_group import expand_segments, record_collectives, said_to_wait
from neuropbr_dist.errors import UserError
from tests.support.distributed import run
from tests.support.forked import call
from tests.support.said import assert_names

ALONE = Environment(launcher="none")
SECOND_OF_TWO = Environment(launcher="torchrun", rank=1, world_size=2, local_rank=1, local_world_size=2)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")


def test_cpu():
    assert pick_device("cpu", SECOND_OF_TWO) == torch.device("cpu")


@without_gpu
def test_auto_without_a_gpu_is_cpu_on_several_ranks():
    assert pick_device("auto", SECOND_OF_TWO) == torch.device("cpu")


@without_gpu
@pytest.mark.parametrize("preference", ["cuda", "cuda:3"])
def test_cuda_without_a_gpu_is_refused(preference):
    with pytest.raises(UserError, match=f"training.device = {preference}: no CUDA device here"):
        pick_device(preference, ALONE)


@pytest.mark.parametrize("preference", ["gpu", "xpu", "meta", "cuda:x", ""])
def test_unknown_devices_are_refused(preference):
    with pytest.raises(UserError, match=f"training.device = '{preference}'; allowed: auto, cuda, cuda:N"):
        pick_device(preference, ALONE)


def test_one_named_device_for_several_ranks_is_refused():
    with pytest.raises(UserError, match=r"training\.device = cpu:0 with 2 ranks"):
        pick_device("cpu:0", SECOND_OF_TWO)


# -- GPUs: how many a process sees comes from torch, so that alone is stood in for ----------------


def gpu(monkeypatch, visible: int, env: Environment, preference: str = "cuda") -> torch.device:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    return pick_device(preference, env)


def test_each_rank_takes_its_own_gpu(monkeypatch):
    assert gpu(monkeypatch, 2, SECOND_OF_TWO) == torch.device("cuda", 1)
    assert gpu(monkeypatch, 4, ALONE, "cuda:3") == torch.device("cuda", 3)


def test_slurm_may_show_each_task_one_gpu(monkeypatch):
    task = Environment(launcher="slurm", rank=1, world_size=2, local_rank=1, local_world_size=2)
    assert gpu(monkeypatch, 1, task) == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("visible", "preference", "env", "message"),
    [
        (1, "cuda", SECOND_OF_TWO, r"2 ranks on this node, but 1 GPU\(s\)"),
        (2, "cuda:2", ALONE, r"training.device = cuda:2: this machine has 2 GPU\(s\)"),
        (2, "cuda:1", SECOND_OF_TWO, "training.device = cuda:1 with 2 ranks; use cuda"),
    ],
)
def test_gpus_that_do_not_fit_are_refused(monkeypatch, visible, preference, env, message):
    with pytest.raises(UserError, match=message):
        gpu(monkeypatch, visible, env, preference)


def test_the_flight_recorder_dumps_into_the_runs_folder(tmp_path):
    """Under the names of torch 2.11 to 2.14; what a person has set stays. The names are torch's own."""
    env = {"TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    record_collectives(env, tmp_path / "traces")
    assert (tmp_path / "traces").is_dir()
    assert env.pop("TORCH_NCCL_DUMP_ON_TIMEOUT") == "0"
    prefix = f"{tmp_path}/traces/rank_"
    assert env["TORCH_FR_DUMP_TEMP_FILE"] == env["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == prefix
    assert int(env["TORCH_FR_BUFFER_SIZE"]) == int(env["TORCH_NCCL_TRACE_BUFFER_SIZE"]) > 0
    library = (Path(torch.__file__).parent / "lib" / "libtorch_cpu.so").read_bytes()
    assert all(name.encode() in library for name in env)


# -- one process ---------------------------------------------------------------------------------


def test_one_process_differs_from_nobody():
    check_alike({"code": "a"}, "here")


def test_one_process_needs_no_rendezvous():
    """`--engine fsdp` on one process: a group of one, without a port."""
    code = (
        "import torch, torch.distributed as dist\n"
        "from neuropbr_dist.cluster import detect, process_group\n"
        "with process_group(detect(), torch.device('cpu'), 1.0):\n"
        "    total = torch.ones(1); dist.all_reduce(total)\n"
        "    print(dist.get_world_size(), int(total))\n"
        "print(dist.is_initialized())"
    )
    done = call(code)
    assert done.out.split() == ["1", "1", "False"], done.err


# -- several ---------------------------------------------------------------------------------------


def compare(facts: list[dict[str, str]]) -> str | None:
    rank = torch.distributed.get_rank()
    try:
        check_alike(facts[rank], f"host{rank}")
    except UserError as error:
        return str(error)
    return None


@pytest.mark.multiprocess
def test_a_difference_names_rank_host_and_fact():
    same = {"code": "abc", "data set": "123"}
    assert run(2, f"{__name__}:compare", facts=[same, same]) == [None, None]
    first, second = run(2, f"{__name__}:compare", facts=[same, {**same, "data set": "456"}])
    assert first == second  # every rank stops, with the same message
    assert first == ("rank 1 on host1 has another data set than rank 0 (data set: 456 there, 123 on rank 0)")


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ("", ["expandable_segments:True"]),
        ("max_split_size_mb:512", ["max_split_size_mb:512,expandable_segments:True"]),
        ("expandable_segments:False", []),
    ],
)
def test_what_a_person_has_set_for_the_allocator_stays(monkeypatch, given, settings):
    found: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", found.append)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", given)
    expand_segments()
    assert found == settings


def test_who_waits_says_for_whom(monkeypatch, capfd):
    monkeypatch.setattr(sys.modules[said_to_wait.__module__], "SAY_AFTER_S", 0.05)
    env = Environment(launcher="slurm", rank=0, world_size=4, master_addr="node1", master_port=20007)
    with said_to_wait(env, 10):
        time.sleep(0.3)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(
        "rank 0 of 4 (slurm) waits for the others at node1:20007, up to 10 minutes; Ctrl-C ends it"
    )
    refused = pytest.raises(UserError, match=r"can't meet the others at node1:20007: in use; .*MASTER_PORT")
    with refused, said_to_wait(env, 10):
        raise RuntimeError("in use")


def test_a_stranger_at_the_port_is_not_waited_for_without_end():
    """It takes the connection and says nothing: torch waits on, whatever its limit."""
    code = (
        "import sys, torch\n"
        "from neuropbr_dist.cluster import detect, process_group\n"
        "sys.modules[process_group.__module__].GIVE_UP_S = 1\n"
        "with process_group(detect(), torch.device('cpu'), 0.02):\n"
        "    pass\n"
    )
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
        done = call(code, env={**ranks, "MASTER_PORT": str(port)})
    assert done.code == 2
    assert_names(done.err.strip(), ["rank 1: error: ", f"127.0.0.1:{port}", "no answer", "MASTER_PORT"])
