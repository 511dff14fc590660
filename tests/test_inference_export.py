"""Exported files: the same weights and outputs, in one file, with damage found."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from neuropbr_dist.checkpoint import Fragment, open_newest, save
from neuropbr_dist.commands.export import run as export
from neuropbr_dist.config import from_yaml
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference import check, consolidate, export_inference, load_generator, read_tensor_file
from neuropbr_dist.models import Generator
from tests.support.damage import flip_a_byte
from tests.support.distributed import run as run_ranks
from tests.support.said import said
from tests.support.trained_run import some_views, trained_run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process saves and loads


@pytest.fixture(scope="module")
def run():
    return trained_run()[0]


@pytest.fixture(scope="module")
def expected(run):
    return load_generator(run)(some_views()[None])


def test_nothing_is_written_into_a_checkpoint(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run", symlinks=True)
    for write in (export_inference, consolidate):
        with pytest.raises(UserError, match=r"lies in a checkpoint.*outside of .*step_"):
            write(run, run / "latest" / "model.safetensors")
    assert check(run)


@pytest.mark.parametrize("out", ["model.safetensors", "folder"])
def test_inference_file_loads_in_three_lines(run, expected, tmp_path, capsys, out):
    export(["inference", str(run), str(tmp_path / out)])
    assert "model.safetensors" in capsys.readouterr().out
    model = load_generator(tmp_path / out)
    assert torch.equal(model(some_views()[None]), expected)
    assert model.step == 2


def test_inference_file_is_an_ordinary_safetensors_file(run, tmp_path):
    path = export_inference(run, tmp_path / "exported")
    with safe_open(path, framework="pt") as file:
        config_yaml = file.metadata()["config"]
    assert (tmp_path / "exported" / "config.yaml").read_text() == config_yaml
    assert yaml.safe_load(config_yaml)["model"]["transformer_dim"] == 16
    generator = Generator(from_yaml(config_yaml, "").model)
    generator.load_state_dict(load_file(path))  # strict: every weight and buffer, nothing else


def test_consolidated_file_equals_the_checkpoint(run, expected, tmp_path):
    path = consolidate(run / "latest", tmp_path / "all.safetensors")
    content = read_tensor_file(path)
    with open_newest(run) as checkpoint:
        stored = checkpoint.read()
        assert content.state == checkpoint.state and content.config_yaml == checkpoint.config_yaml
    assert content.tensors.keys() == stored.keys()
    for name, tensor in stored.items():
        assert content.tensors[name].dtype == tensor.dtype and torch.equal(content.tensors[name], tensor), (
            name
        )
    kinds = {"/".join(name.split("/")[:2]) for name in stored}
    assert {"generator/param", "generator/exp_avg", "discriminator/exp_avg_sq"} <= kinds
    assert torch.equal(load_generator(path)(some_views()[None]), expected)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def save_in_halves(run, folder):
    """On each of two ranks: its half of every tensor, saved as the checkpoint of a sharded run."""
    import torch.distributed as dist

    with open_newest(run) as checkpoint:
        tensors, state, config = checkpoint.read(), checkpoint.state, checkpoint.config_yaml
    fragments = []
    for name, tensor in tensors.items():
        flat, cut = tensor.view(-1), (tensor.numel() + 1) // 2
        start = cut * dist.get_rank()
        fragments.append(Fragment(name, flat[start : start + cut], min(start, len(flat)), tensor.shape))
    save(folder, "step_00000002", fragments, state, config)


@pytest.mark.multiprocess
def test_checkpoint_in_shards_of_two_ranks(run, expected, tmp_path):
    run_ranks(2, "tests.test_inference_export:save_in_halves", run=run, folder=tmp_path / "sharded")
    shards = {path.name for path in (tmp_path / "sharded" / "latest").glob("shard_*")}
    assert shards == {"shard_00000_000.bin", "shard_00001_000.bin"}
    assert torch.equal(load_generator(tmp_path / "sharded")(some_views()[None]), expected)
    content = read_tensor_file(consolidate(tmp_path / "sharded", tmp_path / "all.safetensors"))
    with open_newest(run) as checkpoint:
        assert_equal(content.tensors, checkpoint.read())


def test_damaged_files_are_refused(run, tmp_path):
    path = export_inference(run, tmp_path / "model.safetensors")
    whole = path.read_bytes()
    flip_a_byte(path, at=len(whole) - 100)
    with pytest.raises(UserError, match="its checksum differs"):
        load_generator(path)
    path.write_bytes(whole[:-7])
    with pytest.raises(UserError, match="damaged, or not a safetensors file"):
        load_generator(path)
    path.write_bytes(whole.replace(b"image_size: 32", b"image_size: 64"))
    with pytest.raises(UserError, match="its checksum differs"):
        load_generator(path)
    path.unlink()
    with pytest.raises(UserError, match="no such checkpoint"):
        load_generator(path)


def test_files_of_others_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="its metadata names format 'none'"):
        load_generator(tmp_path / "other.safetensors")


def test_weights_of_another_architecture_are_named(run, tmp_path):
    copy = shutil.copytree(run / "latest", tmp_path / "step_00000001")
    with open_newest(copy) as checkpoint:
        fragments = [Fragment.whole(name, tensor) for name, tensor in checkpoint.read().items()]
        config = checkpoint.config_yaml.replace("transformer_depth: 1", "transformer_depth: 2")
        save(tmp_path / "other", "step_00000001", fragments, checkpoint.state, config)
    with pytest.raises(UserError, match=r"fusion\.blocks\.1\.norm1\.weight \(missing\).* more"):
        export_inference(tmp_path / "other", tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_nothing_is_left_where_a_file_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="was not written"):
        export_inference(run, tmp_path / "file" / "model.safetensors")
    with pytest.raises(UserError, match="its name must end in"):
        consolidate(run, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_check_prints_each_fault_and_exits_with_1(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    export(["check", str(copy)])
    assert capsys.readouterr().out.count(": sound") == 2
    newest = (copy / "latest").resolve()
    flip_a_byte(newest / "shard_00000_000.bin")
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps(state | {"step": 3}))
    with pytest.raises(SystemExit) as stopped:
        export(["check", str(newest)])
    assert stopped.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[-1].endswith("damaged (2 faults)")
    assert any("shard_00000_000.bin: altered" in line for line in lines)
    assert any("state.json: " in line for line in lines)


def test_an_exported_file_among_checkpoints_hides_none_of_them(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    with pytest.raises(UserError, match="holds a run; name another folder"):
        export_inference(run, copy)
    export_inference(run, copy / "model.safetensors")
    assert load_generator(copy).origin == (copy / "latest").resolve()
    with said() as lines:
        assert check(copy) and len(lines) == 3
    flip_a_byte((copy / "latest").resolve() / "shard_00000_000.bin")
    assert not check(copy)


def test_check_reads_exported_files_too(run, tmp_path):
    path = export_inference(run, tmp_path / "exported")
    with said() as lines:
        assert check(tmp_path / "exported") and lines == [f"{path}: sound"]
    flip_a_byte(path, at=path.stat().st_size - 100)
    assert not check(path)
    with pytest.raises(UserError, match="no checkpoint and no exported file"):
        check(tmp_path)
