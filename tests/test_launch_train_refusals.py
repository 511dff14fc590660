"""launch/train.py refuses bad input in one line that names it, with exit code 2."""

import json
import re
import shutil

import pytest

from tests.support.train_runs import run, tiny_set

# Words after the tiny run's own -> what the message names.
REFUSED = {
    "--input-dir no/such": ["no/such", "data.input_dir"],
    "--output-dir no/such": ["no/such", "data.output_dir"],
    "--set data.metadata_path=no/such.json": ["no/such.json", "data.metadata_path"],
    "--device tpu": ["training.device", "'tpu'", "auto, cuda, cuda:N, mps, cpu"],
    "--device cuda": ["training.device = cuda", "no CUDA device", "--device cpu"],
    "--config quick": ["--config", "'quick'", "quick_test"],
    "--config no.yaml": ["--config no.yaml", "no such file"],
    "--set model.depth=1": ["--set", "model.depth"],
    "--set training.epochs=many": ["training.epochs", "'many'", "int"],
    "--set model.transformer_num_heads=3": ["model.transformer_num_heads = 3", "model.transformer_dim = 16"],
    "--set data.image_size=33": ["33 px", "data.image_size", "multiple of", "nearest: 32"],
    "--set data.camera_jitter=0.01": ["data.camera_jitter = 0.01", "0.008"],
    "--set data.min_confidence=2": ["data.min_confidence = 2", "from 0 to 1"],
    "--set model.align=flat": ["model.align", "flat", "auto, plane, none"],
    "--render-curriculum 2": ["render_curriculum", "dirty"],
    "--render-curriculum 3": ["render_curriculum", "3", "0, 1, 2"],
    "--set data.val_ratio=0.95": ["data.val_ratio = 0.95", "leaves none to train on"],
    "--engine magic": ["training.engine", "magic", "auto, single, ddp, fsdp, deepspeed"],
    "--engine deepspeed": ["training.engine = deepspeed", "--ds FILE"],
    "--engine fsdp --ds ds_configs/zero1.json": ["--ds ds_configs/zero1.json", "fsdp"],
    "--ds no/such.json": ["--ds ", "/no/such.json: no such file"],
    "--ds {folder}/clip.json": ["clip.json", "gradient_clipping = 5", "training.grad_clip_norm", "1.0"],
    "--ds {folder}/bad.json": ["bad.json", "line 1, column 2"],
    "--set loss.custom={{mse: 1}}": ["loss.custom", "'mse'", "loss.custom_module"],
    "--set loss.custom_module=no.py": ["loss.custom_module", "no.py"],
    "--resume {folder}": ["--resume {folder}", "no checkpoint there"],
    "--resume no/such": ["--resume no/such", "no such checkpoint or folder"],
    "--checkpoint-dir {folder}/bad.json": ["bad.json"],
    "--stop-after-steps -3": ["--stop-after-steps -3", "0 or more"],
    "--set data.num_workers=100000": ["data.num_workers = 100000", "from 0 to 1024"],
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_line_with_code_2(words, tmp_path):
    (tmp_path / "clip.json").write_text('{"zero_optimization": {"stage": 1}, "gradient_clipping": 5}')
    (tmp_path / "bad.json").write_text("{]")
    given = re.split(r" (?!\d+\})", words.format(folder=tmp_path))
    ended = run(tmp_path / "run", *given)
    assert_one_line(ended, [word.format(folder=tmp_path) for word in REFUSED[words]])
    assert not list(tmp_path.glob("run/step_*")) and not (tmp_path / "run" / "metrics.jsonl").exists()


def assert_one_line(ended, named):
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err + ended.out
    missing = [word for word in named if word not in ended.err]
    assert not missing, ended.err


@pytest.fixture
def own_set(tmp_path):
    """A copy of the tiny set to damage, and the words that name it."""
    for source, name in zip(tiny_set(), ("input", "output"), strict=True):
        shutil.copytree(source, tmp_path / name)
    return tmp_path, ["--input-dir", str(tmp_path / "input"), "--output-dir", str(tmp_path / "output")]


def test_malformed_metadata(own_set):
    folder, words = own_set
    (folder / "input" / "render_metadata.json").write_text('{"sample_0000": "material_0",}')
    assert_one_line(run(folder / "run", *words), ["render_metadata.json", "line 1, column 30"])


def test_malformed_cameras(own_set):
    folder, words = own_set
    (folder / "input" / "cameras.json").write_text(
        '{"version": 1, "samples": {"sample_0009": {"clean": []}}}'
    )
    assert_one_line(
        run(folder / "run", *words), ["cameras.json", "sample_0009: clean: 0; allowed: a list of 3 cameras"]
    )


def test_a_plane_without_cameras(own_set):
    folder, words = own_set
    (folder / "input" / "cameras.json").unlink()
    refused = run(folder / "run", *words, model__align="plane")
    assert_one_line(refused, ["model.align = plane needs cameras", "none of 6 samples", "cameras.json"])


def test_one_material_only(own_set):
    folder, words = own_set
    one = {f"sample_{i:04d}": "material_0" for i in range(6)}
    (folder / "input" / "render_metadata.json").write_text(json.dumps(one))
    assert_one_line(run(folder / "run", *words), ["1 material", "at least 2", "data.split_by = sample"])
    ended = run(folder / "run", *words, "--epochs", "1", data__split_by="sample")
    assert ended.code == 0, ended.err


def test_a_truncated_picture_stops_the_run_before_it_starts(own_set):
    folder, words = own_set
    victim = folder / "input" / "clean" / "sample_0004" / "2.png"
    victim.write_bytes(victim.read_bytes()[:500])
    ended = run(folder / "run", *words)
    assert_one_line(ended, [str(victim), "truncated", "nothing was trained"])
    assert not list(folder.glob("run/step_*")) and not (folder / "run" / "metrics.jsonl").exists()


def test_a_picture_damaged_inside_is_named_when_it_is_read(own_set):
    folder, words = own_set
    victim = folder / "output" / "material_3" / "albedo.png"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    assert_one_line(run(folder / "run", *words), [str(victim), "damaged"])


def test_several_faults_are_listed_together(own_set):
    folder, words = own_set
    for i in (1, 3):
        (folder / "output" / f"material_{i}" / "normal.png").unlink()
    ended = run(folder / "run", *words)
    assert ended.code == 2 and "Traceback" not in ended.err
    assert all(f"material_{i}" in ended.err for i in (1, 3)) and "normal.png" in ended.err


def test_debug_shows_the_traceback(tmp_path):
    ended = run(tmp_path, "--debug", "--set", "model.depth=1")
    assert ended.code != 0
    assert "Traceback" in ended.err and "UserError: --set: unknown key 'model.depth'" in ended.err


def test_more_ranks_than_samples_in_a_batch(tmp_path):
    ended = run(tmp_path, world=2, training__global_batch_size=1)
    assert ended.code == 2
    assert "training.global_batch_size = 1" in ended.err and "world size 2" in ended.err
