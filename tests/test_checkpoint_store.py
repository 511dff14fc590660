"""One process: what is saved comes back, and what is damaged is found, named and not loaded."""

import errno
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from neuropbr_dist.checkpoint import (
    BEST,
    AsyncSaver,
    Fragment,
    check_folder,
    epoch_name,
    find,
    manifest,
    open_newest,
    retain,
    save,
    share,
    stage,
    step_name,
    verify,
    write,
)
from neuropbr_dist.checkpoint import clear as clear_run
from neuropbr_dist.checkpoint.folders import temporary_name
from neuropbr_dist.errors import UserError
from tests.support.damage import Payload, rewrite_manifest
from tests.support.disks import remount, small_disk
from tests.support.said import said

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
FILES = ["manifest.json", "tensors.json", "state.json", "config.yaml", "shard_00000_000.bin"]


def tensors(step: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(step)
    return {
        "generator/param/weight": torch.randn(7, 5, generator=random),
        "generator/buffer/count": torch.tensor(step),
        "generator/buffer/mask": torch.rand(9, generator=random) < 0.5,
        "generator/buffer/none": torch.empty(0, 3),
        "discriminator/param/half": torch.randn(11, generator=random).bfloat16(),
    }


def whole(content: dict[str, torch.Tensor]) -> list[Fragment]:
    return [Fragment.whole(name, tensor) for name, tensor in content.items()]


def save_step(folder: Path, step: int, links=("latest",)) -> Path:
    return save(folder, step_name(step), whole(tensors(step)), {"step": step}, f"seed: {step}\n", links=links)


def assert_holds(checkpoint, step: int) -> None:
    loaded = {name: torch.zeros_like(tensor) for name, tensor in tensors(step).items()}
    checkpoint.load(whole(loaded))
    for name, tensor in tensors(step).items():
        assert torch.equal(loaded[name], tensor), name
    assert checkpoint.state == {"step": step}
    assert checkpoint.config_yaml == f"seed: {step}\n"


def test_round_trip_and_names(tmp_path):
    first = save_step(tmp_path, 1, links=["latest", BEST, epoch_name(1)])
    second = save_step(tmp_path, 2)
    assert [path.name for path in find(tmp_path)] == ["step_00000002", "step_00000001"]
    assert find(tmp_path / "latest") == [second, first]
    assert find(tmp_path / BEST) == find(tmp_path / "checkpoint_epoch_0001") == find(first) == [first]
    assert find(tmp_path / "nothing") == []
    assert verify(first) == verify(second) == []
    for path, step in [(tmp_path, 2), (tmp_path / "latest", 2), (tmp_path / BEST, 1), (second, 2)]:
        with open_newest(path) as checkpoint:
            assert_holds(checkpoint, step)
    assert open_newest(tmp_path / "nothing") is None


def test_read_gives_whole_tensors_of_a_prefix(tmp_path):
    with open_newest(save_step(tmp_path, 3)) as checkpoint:
        read = checkpoint.read("generator/")
    assert set(read) == {name for name in tensors(3) if name.startswith("generator/")}
    assert all(torch.equal(tensor, tensors(3)[name]) for name, tensor in read.items())


def test_load_writes_into_views_and_converts_floats(tmp_path):
    path = save(tmp_path, "a", [Fragment("w", torch.arange(12.0), 0, (3, 4))], {}, "")
    row = torch.zeros(3, 4, dtype=torch.bfloat16)
    with open_newest(path) as checkpoint:
        checkpoint.load([Fragment("w", row.view(-1)[4:8], 4, row.shape)])
    assert row.tolist() == [[0] * 4, [4, 5, 6, 7], [0] * 4]


def test_a_step_saved_again_is_another_save_and_the_newest(tmp_path):
    for step in (5, 9, 5):
        save_step(tmp_path, step)
    assert [path.name for path in find(tmp_path)] == ["step_00000005-2", "step_00000009", "step_00000005"]
    assert (tmp_path / "latest").resolve().name == "step_00000005-2"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "replace"])
def test_damage_is_named_and_the_save_before_is_taken(tmp_path, file, damage):
    older, newest = save_step(tmp_path, 1), save_step(tmp_path, 2)
    victim = newest / file
    content = bytearray(victim.read_bytes())
    if damage == "truncate":
        victim.write_bytes(content[:-1])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "delete":
        victim.unlink()
    else:
        shutil.copy(older / file, victim)
    assert any(file in fault for fault in verify(newest))

    with said() as lines, open_newest(tmp_path / "latest") as checkpoint:
        assert_holds(checkpoint, 1)
    assert newest.name in lines[0] and file in lines[0] and older.name in lines[1]

    (older / file).write_bytes(b"")
    with pytest.raises(UserError, match=rf"no checkpoint .* is good: .*{file}") as caught:
        open_newest(tmp_path)
    assert newest.name in str(caught.value) and older.name in str(caught.value)


def test_an_extra_file_is_a_fault(tmp_path):
    path = save_step(tmp_path, 1)
    (path / "notes.txt").write_text("")
    assert verify(path) == ["notes.txt: extra, not in manifest.json"]


@pytest.mark.parametrize("file", [".metadata", "tensors.json", "state.json", "shard_00000_000.bin"])
def test_a_pickle_in_a_checkpoint_is_never_run(tmp_path, file):
    mark = tmp_path / "mark"
    payload = pickle.dumps(Payload(mark))
    pickle.loads(payload)
    assert mark.exists()
    mark.unlink()

    path = save_step(tmp_path / "run", 1)
    (path / file).write_bytes(payload.ljust(500, b"\0"))
    rewrite_manifest(path)
    try:
        with open_newest(path) as checkpoint:
            checkpoint.load(whole(tensors(1)))
    except UserError:
        assert file != ".metadata"  # one more file harms nothing
    assert not mark.exists()


def test_a_forged_manifest_cannot_leave_the_folder(tmp_path):
    path = save_step(tmp_path, 1)
    rewrite_manifest(path, names=["../../escaped"])
    assert "leaves the folder" in verify(path)[0]


@pytest.mark.parametrize(
    "piece, fault",
    [
        ([0, 34], "elements 34 to 35 are missing"),
        ([1, 35], "elements 0 to 1 are stored twice or never"),
        ([-1, 36], "-1 isn't a count"),
        ([0, 35, "shard_00000_000.bin", 10**6], "a tensor lies outside of shard_00000_000.bin"),
        ([0, 35, "/etc/hostname"], "/etc/hostname isn't a shard"),
    ],
)
def test_forged_pieces_of_a_tensor_are_found(tmp_path, piece, fault):
    path = save_step(tmp_path, 1)
    content = json.loads((path / "tensors.json").read_text())
    content["tensors"]["generator/param/weight"]["pieces"][0][: len(piece)] = piece
    (path / "tensors.json").write_text(json.dumps(content))
    rewrite_manifest(path)
    assert verify(path) == [f"tensors.json: malformed: {fault}"]


@pytest.mark.parametrize("version, advice", [(2, "newer version"), (0, "older version")])
def test_another_format_version_stops_and_says_so(tmp_path, version, advice, monkeypatch):
    save_step(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("neuropbr_dist.checkpoint.manifest.FORMAT", version)
        save_step(tmp_path, 2)
    with pytest.raises(UserError, match=rf"step_00000002 has checkpoint format {version}.*{advice}"):
        open_newest(tmp_path)


def test_another_architecture_is_refused_with_names(tmp_path):
    path = save_step(tmp_path, 1)
    wanted = tensors(1)
    del wanted["generator/buffer/mask"]
    wanted["generator/param/weight"] = torch.zeros(5, 7)
    wanted["generator/buffer/count"] = torch.tensor(1.0)
    wanted.update({f"extra/{index}": torch.zeros(1) for index in range(12)})
    with open_newest(path) as checkpoint:
        with pytest.raises(UserError, match="12 tensors are not in it, 1 are in it only, 2 differ") as caught:
            checkpoint.load(whole(wanted))
        assert "generator/param/weight ((7, 5) there, (5, 7) here)" in str(caught.value)
        assert str(caught.value).count("not in the checkpoint") == 8  # ten names in all

        part = {"generator/param/weight": torch.zeros(7, 5)}
        with pytest.raises(UserError, match="4 are in it only"):
            checkpoint.load(whole(part))
        checkpoint.load(whole(part), strict=False)
        assert torch.equal(part["generator/param/weight"], tensors(1)["generator/param/weight"])
        with pytest.raises(UserError, match="1 tensors are not in it"):
            checkpoint.load(whole({"unknown": torch.zeros(1)}), strict=False)


def test_wrong_fragments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="outside of shape"):
        Fragment("w", torch.zeros(3), 2, (4,))
    with pytest.raises(ValueError, match="1-D"):
        Fragment("w", torch.zeros(2, 2), 0, (4,))
    with pytest.raises(ValueError, match="begin at element 0 of w"):
        stage([Fragment("w", torch.zeros(3), 0, (4,)), Fragment("w", torch.zeros(4), 0, (4,))])
    with pytest.raises(ValueError, match="disagree about w"):
        stage([Fragment("w", torch.zeros(3), 0, (4,)), Fragment("w", torch.zeros(1), 3, (2, 2))])
    with pytest.raises(RuntimeError, match="elements 3 to 4 are missing"):
        save(tmp_path, "a", [Fragment("w", torch.zeros(3), 0, (4,))], {}, "")
    assert list(tmp_path.iterdir()) == []


def test_staging_is_a_snapshot_and_its_memory_is_used_again(tmp_path):
    live = torch.arange(6.0)
    staged = stage(whole({"w": live}))
    live += 1
    path = write(staged, tmp_path, "a", {}, "")
    again = stage(whole({"w": live}), reuse=staged)
    assert again.fragments[0].data.data_ptr() == staged.fragments[0].data.data_ptr()
    other = stage(whole({"w": live, "v": live}), reuse=staged)
    assert other.fragments[0].data.data_ptr() != staged.fragments[0].data.data_ptr()
    with open_newest(path) as checkpoint:
        assert checkpoint.read()["w"].tolist() == list(range(6))


def test_async_saver(tmp_path):
    saver = AsyncSaver(tmp_path, keep_latest=2)
    live, state = torch.zeros(1000), {"step": 0}
    for step in range(1, 6):
        live.fill_(step)
        state["step"] = step
        saver.save(step_name(step), whole({"w": live}), state, "")
    live.fill_(-1)
    state["step"] = -1
    assert saver.wait() == tmp_path / "step_00000005"
    assert saver.wait() is None
    saver.close()
    assert [path.name for path in find(tmp_path)] == ["step_00000005", "step_00000004"]
    with open_newest(tmp_path) as checkpoint:
        assert checkpoint.state == {"step": 5}
        assert checkpoint.read()["w"].unique().tolist() == [5]


def test_async_errors_surface_at_the_next_boundary(tmp_path):
    blocked = tmp_path / "file" / "run"
    blocked.parent.write_text("not a folder")
    saver = AsyncSaver(blocked)
    for boundary in (saver.wait, lambda: save_later(saver), saver.close):
        save_later(saver)
        with pytest.raises(UserError, match=r"was not saved, earlier ones are untouched: .*Not a directory"):
            boundary()
    saver = AsyncSaver(blocked)
    with pytest.raises(TypeError, match="not JSON serializable"):
        saver.save("a", [], {"rate": torch.zeros(1)}, "")
    save_later(saver)
    saver._job.exception()  # ended
    assert saver.failed
    with pytest.raises(UserError):
        saver.check()
    saver.check()
    blocked.parent.unlink()
    blocked.mkdir(parents=True)
    save_later(saver)
    saver.close()
    assert len(find(blocked)) == 1


def save_later(saver: AsyncSaver) -> None:
    saver.save(step_name(1), whole(tensors(1)), {"step": 1}, "")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_retention_keeps_latest_named_and_read_ones(tmp_path):
    links = {1: ["latest", epoch_name(1)], 2: ["latest", BEST], 5: ["latest", BEST]}
    for step in range(1, 8):
        save_step(tmp_path, step, links.get(step, ["latest"]))
    (tmp_path / f"step_00000008.tmp-{'0' * 32}").mkdir()
    (tmp_path / "notes.tmp-mine").touch()
    with open_newest(tmp_path / "step_00000004"):
        retain(tmp_path, 2)
        named = {"latest", BEST, epoch_name(1), "notes.tmp-mine"}
        kept = {step_name(step) for step in (1, 5, 6, 7)}  # 2 was best once
        assert names(tmp_path) == named | kept | {step_name(4)}
    retain(tmp_path, 2)
    assert names(tmp_path) == named | kept
    clear_run(tmp_path)
    assert names(tmp_path) == {"notes.tmp-mine"}


def test_retention_counts_good_saves_only(tmp_path):
    for step in range(1, 5):
        save_step(tmp_path, step)
    for step in (3, 4):
        (tmp_path / step_name(step) / "state.json").write_text("{}")
    with said() as lines:
        retain(tmp_path, 3)  # two good ones: nothing may go
    assert len(find(tmp_path)) == 4 and len(lines) == 2
    retain(tmp_path, 1)
    assert names(tmp_path) == {"latest", step_name(4), step_name(2)}  # `latest` means 4 until the next save
    save_step(tmp_path, 5)
    (tmp_path / step_name(4) / "manifest.json").unlink()
    retain(tmp_path, 1)
    assert names(tmp_path) == {"latest", step_name(5)}


def test_links_that_a_kill_left_out_are_made_later(tmp_path):
    save_step(tmp_path, 1, ["latest", BEST])
    save_step(tmp_path, 2, ["latest", BEST])
    for name in ("latest", BEST):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(step_name(1))
    assert find(tmp_path / "latest")[0].name == step_name(2)
    retain(tmp_path, 1)
    assert (tmp_path / BEST).resolve().name == (tmp_path / "latest").resolve().name == step_name(2)
    (tmp_path / BEST).unlink()
    (tmp_path / BEST).mkdir()
    with pytest.raises(UserError, match=r"best_model is no link, .*; delete it"):
        retain(tmp_path, 1)


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MiB."""
    with small_disk(tmp_path / "disk", "4m") as folder:
        yield folder


def test_a_full_disk_leaves_the_save_before(disk):
    save_step(disk, 1)
    big = whole({"w": torch.zeros(2**21)})
    with pytest.raises(UserError, match="No space left on device"):
        save(disk, step_name(2), big, {}, "")
    assert names(disk) == {"latest", step_name(1)}
    with open_newest(disk) as checkpoint:
        assert_holds(checkpoint, 1)


def test_a_read_only_folder_can_be_loaded_from_but_not_saved_to(disk):
    save_step(disk, 1)
    remount(disk, "ro")
    with open_newest(disk) as checkpoint:
        assert_holds(checkpoint, 1)
    with pytest.raises(UserError, match="Read-only file system"):
        save_step(disk, 2)


@pytest.mark.parametrize("world", [1, 2, 3, 7, 50])
def test_the_shares_of_all_ranks_make_up_the_whole(world):
    """Of tensors of several dtypes, also where there are more ranks than elements: no overlap, equal bytes."""
    content = whole(tensors(3))
    shares = [share(content, rank, world) for rank in range(world)]
    for fragment in content:
        pieces = sorted(
            (f for own in shares for f in own if f.name == fragment.name and f.data.numel()),
            key=lambda f: f.start,
        )
        ends = [0, *(f.start + f.data.numel() for f in pieces)]
        assert [f.start for f in pieces] == ends[:-1] and ends[-1] == fragment.data.numel()
        if pieces:
            assert torch.equal(torch.cat([f.data for f in pieces]), fragment.data)
    sizes = [sum(f.data.nbytes for f in own) for own in shares]
    assert max(sizes) - min(sizes) <= 2 * 8  # an element at each edge


def test_memory_made_ahead_is_what_the_first_save_uses(tmp_path):
    saver = AsyncSaver(tmp_path)
    saver.prepare(whole(tensors(1)))
    reserved = saver._reserved.result().fragments
    saver.save(step_name(1), whole(tensors(1)), {"step": 1}, "seed: 1\n")
    used = saver._staged.fragments
    assert [f.data.data_ptr() for f in used] == [f.data.data_ptr() for f in reserved]
    saver.close()
    with open_newest(tmp_path) as checkpoint:
        assert_holds(checkpoint, 1)


def test_a_save_tells_its_timing(tmp_path):
    told = []
    saver = AsyncSaver(tmp_path, on_saved=lambda path, links, timing: told.append((path, links, timing)))
    assert saver.longest is None
    saver.save(step_name(1), whole(tensors(1)), {"step": 1}, "")
    path = saver.wait()
    saver.close()
    ((where, links, timing),) = told
    assert where == path and links == ["latest"]
    assert timing.bytes == sum(file.stat().st_size for file in path.iterdir())
    assert saver.longest == saver.expected == timing.held_s + timing.behind_s > 0


def test_until_a_save_is_measured_it_is_reckoned_by_its_size(tmp_path):
    saver = AsyncSaver(tmp_path)
    fragments = whole(tensors(1))
    saver.prepare(fragments)
    assert saver.expected == 10 + sum(f.data.nbytes for f in fragments) / 1e8
    saver.close()


# -- what strangers and bad disks leave ----------------------------------------------------------

FORGED = {
    "serial": ["9", None, [1], float("nan"), 10**400, -1, True],
    "names": ["latest", [1], ["a\0b"], ["config.yaml"], ["a" * 5000], None],
    "save_id": [None, 5],
    "files": [[], None, {"a\0b": {"bytes": 1, "sha256": ""}}, {"state.json": {"bytes": "5", "sha256": ""}}],
    "format": [True, None, "1"],
}


@pytest.mark.parametrize(
    "key, value", [(key, value) for key, values in FORGED.items() for value in values], ids=str
)
def test_a_manifest_of_other_types_is_damaged(tmp_path, key, value):
    save_step(tmp_path, 1)
    path = save_step(tmp_path, 2)
    content = json.loads((path / "manifest.json").read_text()) | {key: value}
    del content["sha256"]
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({**content, "sha256": own}))
    with said() as lines, open_newest(tmp_path) as checkpoint:
        assert_holds(checkpoint, 1)
    assert f"falling back to {tmp_path / step_name(1)}" in " ".join(lines)
    retain(tmp_path, keep_latest=2)


def test_tensors_may_not_share_bytes(tmp_path):
    path = save_step(tmp_path, 1)
    content = json.loads((path / "tensors.json").read_text())
    piece = content["tensors"]["generator/param/weight"]["pieces"][0]
    content["tensors"]["bomb"] = {
        "dtype": "uint8",
        "shape": [40],
        "pieces": [[i, 1, *piece[2:]] for i in range(40)],
    }
    (path / "tensors.json").write_text(json.dumps(content))
    rewrite_manifest(path)
    assert verify(path) == [
        "tensors.json: malformed: two tensors lie in the same bytes of shard_00000_000.bin"
    ]


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_can_not_be_read_is_damage(tmp_path, monkeypatch, file):
    """The newest save falls back, an old one neither ends a run nor goes before there are enough good ones."""
    for step in (1, 2):
        save_step(tmp_path, step)

    def failing(descriptor: int, *arguments, plain) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"{step_name(2)}/{file}"):
            raise OSError(errno.EIO, "Input/output error")
        return plain(descriptor, *arguments)

    plain_fstat = os.fstat
    monkeypatch.setattr(os, "fstat", lambda descriptor: failing(descriptor, plain=plain_fstat))
    monkeypatch.setattr(manifest, "_hash", lambda path, plain=manifest._hash: unreadable(path, file, plain))
    with said() as lines, open_newest(tmp_path) as checkpoint:
        assert_holds(checkpoint, 1)
    assert "Input/output error" in " ".join(lines)
    save_step(tmp_path, 3)
    retain(tmp_path, keep_latest=1)
    assert (tmp_path / step_name(3)).is_dir()


def unreadable(path: Path, file: str, plain) -> str:
    if path.parent.name == step_name(2) and path.name == file:
        raise OSError(errno.EIO, "Input/output error")
    return plain(path)


def test_a_state_of_another_kind_falls_back(tmp_path):
    def usable(checkpoint) -> None:
        if checkpoint.state["step"] == 2:
            raise UserError("no state of ours")

    for step in (1, 2):
        save_step(tmp_path, step)
    with said() as lines, open_newest(tmp_path, usable=usable) as checkpoint:
        assert_holds(checkpoint, 1)
    assert "no state of ours" in " ".join(lines)


def test_a_folder_is_tried_out_before_it_is_needed(tmp_path, monkeypatch):
    save_step(tmp_path, 1)
    for name in (step_name(2), "probe"):  # of lives that were killed before they had saved
        (tmp_path / temporary_name(name)).mkdir()
    check_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", step_name(1)]
    (tmp_path / "latest").unlink()
    shutil.copytree(tmp_path / step_name(1), tmp_path / "latest")  # cp -rL
    with pytest.raises(UserError, match=r"latest is no link, as in a copy that followed links; delete it"):
        check_folder(tmp_path)
    shutil.rmtree(tmp_path / "latest")
    (tmp_path / "history.jsonl").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match=r"history\.jsonl: a link to /etc/hostname"):
        check_folder(tmp_path)
    (tmp_path / "history.jsonl").unlink()

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    with pytest.raises(UserError, match=r"no symbolic link can be made here .*--checkpoint-dir"):
        check_folder(tmp_path)


def test_a_save_without_room_for_its_names_is_there(tmp_path):
    """No file can be made any more, as where a file system's inodes are used up."""
    with small_disk(tmp_path / "disk", "1m,nr_inodes=9") as folder:  # root, a folder, five files, a name
        save_step(folder, 1)
        shutil.rmtree(folder / step_name(1))
        (folder / "another").touch()
        with pytest.raises(
            UserError, match=r"step_00000002 was saved, but its names weren't made: .*latest: .*No space"
        ):
            save_step(folder, 2)
        assert sorted(path.name for path in folder.iterdir()) == ["another", "latest", step_name(2)]
        with pytest.raises(UserError, match=r"disk: can't be written to: No space left"):
            check_folder(folder)
        remount(folder, "nr_inodes=20")
        check_folder(folder)
        with open_newest(folder) as checkpoint:
            assert_holds(checkpoint, 2)


def test_a_folder_that_was_moved_away_is_not_made_anew(tmp_path):
    with pytest.raises(UserError, match=r"gone.*No such file"):
        write(stage([Fragment.whole("w", torch.zeros(2))]), tmp_path / "gone", "step_00000001", {}, "")
    assert not list(tmp_path.iterdir())
