"""Several ranks over gloo: replicas are written once, cuts differ between save and load, errors are agreed on."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from neuropbr_dist.checkpoint import AsyncSaver, Fragment, RunLock, open_newest, save, step_name, verify
from neuropbr_dist.checkpoint.manifest import read_manifest
from neuropbr_dist.errors import UserError
from tests.support.disks import small_disk
from tests.support.distributed import run
from tests.support.said import said

pytestmark = [pytest.mark.multiprocess, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]


def tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    content = {
        "uneven": torch.randn(7, 5, generator=random),
        "hybrid": torch.randn(21, generator=random),
        "mask": torch.rand(3, 3, generator=random) < 0.5,
        "step": torch.tensor(17),
        "last rank's": torch.arange(6).view(2, 3),
    }
    return content | {f"replica{index}": torch.randn(64, generator=random) for index in range(8)}


def pieces(content: dict, name: str, *bounds: int) -> list[Fragment]:
    tensor = content[name]
    flat = tensor.view(-1)
    return [
        Fragment(name, flat[start:end], start, tensor.shape)
        for start, end in zip(bounds[::2], bounds[1::2], strict=True)
    ]


def save_cut(rank: int, content: dict) -> list[Fragment]:
    """World size 4: a rank without anything, replicas on two and on three, and a tensor on one rank only."""
    if rank == 1:
        return []
    bounds = [0, 3, 3, 20, 35]
    fragments = pieces(content, "uneven", bounds[rank], bounds[rank + 1])
    fragments += pieces(content, "hybrid", *((0, 10) if rank % 2 == 0 else (10, 21)))
    if rank == 3:
        fragments += pieces(content, "last rank's", 0, 2, 2, 6)
    for name in content:
        if name.startswith("replica") or name in ("mask", "step"):
            fragments += pieces(content, name, 0, content[name].numel())
    return fragments


def load_cut(rank: int, world_size: int, content: dict) -> list[Fragment]:
    """Every tensor cut evenly; the last rank takes the rest; two of them whole on every rank."""
    fragments = []
    for name, tensor in content.items():
        share = tensor.numel() // world_size
        end = tensor.numel() if rank == world_size - 1 else (rank + 1) * share
        cut = (0, tensor.numel()) if name in ("hybrid", "step") else (rank * share, end)
        fragments += pieces(content, name, *cut)
    return fragments


def save_at_4(folder):
    path = save(folder, step_name(1), save_cut(dist.get_rank(), tensors()), {"step": 1}, "")
    assert verify(path) == []
    return path


def load_all(folder, world_size):
    """Load at the first `world_size` of the ranks."""
    group = dist.new_group(range(world_size)) if dist.is_initialized() else None
    rank = dist.get_rank() if dist.is_initialized() else 0
    if rank >= world_size:
        return
    loaded = {name: torch.full_like(tensor, 1) for name, tensor in tensors().items()}
    fragments = load_cut(rank, world_size, loaded)
    with open_newest(folder, process_group=group) as checkpoint:
        checkpoint.load(fragments, process_group=group)
    for fragment in fragments:
        piece = slice(fragment.start, fragment.start + fragment.data.numel())
        assert torch.equal(fragment.data, tensors()[fragment.name].view(-1)[piece]), fragment.name


def test_save_at_4_ranks_load_at_any(tmp_path):
    path = run(4, f"{__name__}:save_at_4", folder=tmp_path)[3]
    sizes = {name: record.bytes for name, record in read_manifest(path).files.items() if "shard" in name}
    assert sum(sizes.values()) == sum(tensor.nbytes for tensor in tensors().values())
    assert len(sizes) == 3 and max(sizes.values()) < 2 * min(sizes.values())
    load_all(tmp_path, 1)
    for world_size in (2, 3, 4):
        run(4, f"{__name__}:load_all", folder=tmp_path, world_size=world_size)


def fail_and_recover(folder: Path):
    """One rank's full disk, unfit fragments, another shape, a taken lock: all ranks must raise alike."""
    rank, messages = dist.get_rank(), []
    save(folder, step_name(1), [Fragment.whole("w", torch.ones(3))], {}, "")
    size = 2**21 if rank == 1 else 0
    big = Fragment("w", torch.zeros(size), 0, torch.Size([2**21]))
    gap = Fragment("w", torch.zeros(2), 3 * rank, torch.Size([11]))
    other = Fragment("w", torch.zeros(3), 0, torch.Size([3 + rank]))
    with open_newest(folder) as checkpoint, RunLock(folder):
        for attempt in (
            lambda: save(folder, step_name(2), [big], {}, ""),
            lambda: save(folder, step_name(2), [gap], {}, ""),
            lambda: save(folder, step_name(2), [other], {}, ""),
            lambda: checkpoint.load([other]),
            lambda: checkpoint.load([Fragment("v", torch.zeros(3), 0, torch.Size([3]))]),
            lambda: RunLock(folder).__enter__(),
        ):
            with pytest.raises((UserError, RuntimeError, ValueError)) as caught:
                attempt()
            messages.append(f"{caught.type.__name__}: {caught.value}")
            dist.barrier()
    loaded = torch.zeros(3)
    with open_newest(folder) as checkpoint:
        checkpoint.load([Fragment.whole("w", loaded)])
    assert loaded.tolist() == [1, 1, 1]
    return messages


def test_errors_are_raised_on_all_ranks(tmp_path):
    with small_disk(tmp_path, "4m"):
        messages = run(4, f"{__name__}:fail_and_recover", folder=tmp_path)
        left = {path.name for path in tmp_path.iterdir()}
    assert messages[1:] == messages[:-1]
    expected = [
        "UserError: .*No space left on device",
        "RuntimeError: .*w",
        "RuntimeError: .*disagree about w",
    ]
    expected += [
        "ValueError: .*disagree about w",
        "UserError: .*1 tensors are not in it",
        "UserError: .*in use by",
    ]
    for message, pattern in zip(messages[0], expected, strict=True):
        assert re.match(pattern, message), message
    assert left == {"latest", step_name(1), "run.lock"}


def save_behind_training(folder):
    rank = dist.get_rank()
    saver = AsyncSaver(folder, keep_latest=1)
    live = torch.zeros(1000)
    for step in range(1, 4):
        live.fill_(step)
        share = live[rank * 250 : (rank + 1) * 250]
        saver.save(step_name(step), [Fragment("w", share, rank * 250, live.shape)], {"step": step}, "")
        total = torch.ones(1)
        dist.all_reduce(total)  # training's own collectives go on meanwhile
        live.fill_(-1)
        assert total.item() == 4
    saver.close()
    return sorted(path.name for path in Path(folder).iterdir())


def test_async_saver_on_several_ranks(tmp_path):
    for listing in run(4, f"{__name__}:save_behind_training", folder=tmp_path):
        assert listing == ["latest", step_name(3)]
    with open_newest(tmp_path) as checkpoint:
        assert checkpoint.read()["w"].unique().tolist() == [3]


def verify_shared(folder):
    with said() as lines, open_newest(folder) as checkpoint:
        return checkpoint.state["step"], lines


def test_ranks_agree_on_a_damaged_file(tmp_path):
    for step in (1, 2):
        save(tmp_path, step_name(step), [Fragment.whole("w", torch.ones(3))], {"step": step}, "")
    for name in ("state.json", "shard_00000_000.bin"):  # on different ranks' shares
        (tmp_path / step_name(2) / name).write_bytes(b"")
    (_, lines), *others = results = run(4, f"{__name__}:verify_shared", folder=tmp_path)
    assert [step for step, _ in results] == [1] * 4 and not any(said for _, said in others)
    assert "state.json" in lines[0] and "shard_00000_000.bin" in lines[0]
