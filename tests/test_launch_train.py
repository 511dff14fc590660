"""launch/train.py: what a run prints, writes and refuses, and resumes under real launchers."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.distributed import ENVIRONMENT, ROOT, free_port
from tests.material_files import write_set
from tests.train_runs import (
    SINGLE_PROCESS_SAVES,
    assert_same_run,
    command,
    metrics,
    run,
    state,
    tiny_set,
    tiny_words,
)

pytestmark = SINGLE_PROCESS_SAVES

# -- what a run prints and writes ------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """(folder, what was printed) of four epochs, the GAN from the third on, with TensorBoard."""
    folder = tmp_path_factory.mktemp("logged") / "run"
    ended = run(
        folder, training__use_tensorboard=True, training__save_every_n_epochs=2,
        training__log_every_n_steps=2, training__log_images_every_n_epochs=2,
    )  # fmt: skip
    assert ended.code == 0 and ended.err == ""
    return folder, ended.out


def test_console_lines_are_the_guides(logged):
    folder, said = logged
    number = r"\d+\.\d+"
    for line in (
        r"Epoch 4 Summary:\n  Generator Loss: {n}\n  Discriminator Loss: {n}\n",
        r"\[Validation\] Epoch 4 - Loss: {n}\n",
        r"Saved best model: {folder}/best_model\n",
        r"Saved checkpoint: {folder}/checkpoint_epoch_0004\n",
    ):
        assert re.search(line.format(n=number, folder=re.escape(str(folder))), said), line
    before_gan = said[said.index("Epoch 2 Summary") : said.index("[Validation] Epoch 2")]
    assert "Generator Loss" in before_gan and "Discriminator Loss" not in before_gan
    assert [int(n) for n in re.findall(r"Epoch (\d+) Summary", said)] == [1, 2, 3, 4]
    assert [int(n) for n in re.findall(r"\[Validation\] Epoch (\d+)", said)] == [0, 1, 2, 3, 4]
    assert said.endswith(f"Done: 10 steps, {folder}\n")


def test_a_pipe_gets_no_control_characters(logged):
    assert not re.search(r"[\r\x1b]", logged[1])


def test_summary_is_the_mean_of_the_epochs_steps(logged, tmp_path):
    """Epoch 4 is steps 9 and 10, logged as one line."""
    folder, said = logged
    line = next(m for m in metrics(folder) if m["step"] == 10 and "train/G_loss" in m)
    shown = re.search(r"Epoch 4 Summary:\n  Generator Loss: ([\d.]+)\n  Discriminator Loss: ([\d.]+)", said)
    assert float(shown[1]) == pytest.approx(line["train/G_loss"], abs=6e-4)
    assert float(shown[2]) == pytest.approx(line["train/D_loss"], abs=6e-4)


def test_metrics_lines(logged):
    lines = metrics(logged[0])
    first, *rest = lines
    assert (first["step"], first["epoch"], first["samples"]) == (0, 0, 0)
    assert "val/loss" in first and not any(key.startswith("train/") for key in first)
    assert all({"step", "epoch", "samples"} <= line.keys() for line in lines)
    train = [line for line in rest if "train/G_loss" in line]
    # Every two steps, and at the end of each epoch.
    assert [line["step"] for line in train] == [2, 3, 4, 5, 6, 8, 10]
    assert [line["samples"] for line in train] == [2 * line["step"] for line in train]
    assert [line["epoch"] for line in train] == [1, 1, 2, 2, 3, 3, 4]
    for line in train:
        assert {"train/lr", "train/G_grad_norm", "train/ssim_loss", "train/normal_angle"} <= line.keys()
        assert {f"train/l1_{name}" for name in ("albedo", "roughness", "metallic", "normal")} <= line.keys()
        assert ("train/D_loss" in line) == (line["step"] > 5)
    for line in (line for line in lines if "val/loss" in line):
        for name in ("albedo", "roughness", "metallic", "normal"):
            assert {f"val/{name}_{metric}" for metric in ("psnr", "ssim", "mae")} <= line.keys()
        assert {"val/psnr", "val/ssim", "val/mae", "val/normal_angle_mean"} <= line.keys()
    speeds = json.loads((logged[0] / "metrics.jsonl").read_text().splitlines()[1])
    assert {"speed/ms_per_step", "speed/samples_per_s", "speed/data_wait"} <= speeds.keys()


def test_tensorboard_holds_the_same(logged):
    events = EventAccumulator(str(logged[0] / "logs")).Reload()
    lines = metrics(logged[0])
    for tag in ("train/G_loss", "train/D_loss", "train/lr", "val/loss", "val/albedo_psnr"):
        wanted = [(line["step"], line[tag]) for line in lines if tag in line]
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-6)
    (tag,) = events.Tags()["images"]
    assert tag.startswith("val/clean/sample_")
    assert [event.step for event in events.Images(tag)] == [5, 10]  # epochs 2 and 4


def test_config_yaml_is_the_run_as_resolved(logged):
    saved = yaml.safe_load((logged[0] / "config.yaml").read_text())
    assert saved["training"]["global_batch_size"] == 2
    assert saved["optimizer"]["scheduler_epochs"] == 4
    assert saved["model"]["encoder_pretrained"] is False
    assert saved["training"]["checkpoint_dir"] == str(logged[0])
    again = command("--config", logged[0] / "config.yaml", "--checkpoint-dir", logged[0].parent / "again")
    assert again.code == 0, again.err
    assert metrics(logged[0].parent / "again") == metrics(logged[0])


def test_unset_global_batch_is_the_batch_size_times_the_ranks(tmp_path):
    assert run(tmp_path, training__global_batch_size=None, training__batch_size=3).code == 0
    assert state(tmp_path)["global_batch"] == 3
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["training"]["global_batch_size"] == 3


def test_no_gan(tmp_path):
    ended = run(tmp_path, "--epochs", "1", model__use_gan=False, training__gan_start_epoch=0)
    assert ended.code == 0 and "Discriminator" not in ended.out
    assert not any("train/D_loss" in line for line in metrics(tmp_path))


def test_validation_and_periodic_saves_where_asked_and_at_the_end(tmp_path):
    ended = run(tmp_path, training__val_every_n_epochs=3, training__save_every_n_epochs=3)
    assert [int(n) for n in re.findall(r"\[Validation\] Epoch (\d+)", ended.out)] == [0, 3, 4]
    assert [p.name for p in tmp_path.glob("checkpoint_*")] == ["checkpoint_epoch_0003"]


def test_builtin_materials_when_no_data_is_named(tmp_path):
    """…nor lies at ./data."""
    words = tiny_words(
        data__builtin_count=3, data__image_size=32, data__builtin_cache=str(tmp_path / "cache")
    )
    assert words[0] == "--input-dir"
    ended = command(*words[4:], "--epochs", "1", "--checkpoint-dir", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert len(re.findall("No data named and none at ./data: training on 3 built-in", ended.out)) == 1
    assert "Samples: 2 for training, 1 for validation, 32 px" in ended.out


def test_dirty_and_mixed_curricula(tmp_path):
    renders, maps = write_set(
        tmp_path, {f"sample_{i}": f"m{i}" for i in range(3)}, sources=("clean", "dirty"), size=32
    )
    for words, count, batch in (("--use-dirty", 2, 1), ("--render-curriculum 1", 4, 1)):
        folder = tmp_path / words.split()[0].strip("-")
        data = ["--input-dir", str(renders), "--output-dir", str(maps)]
        ended = run(folder, *words.split(), *data, "--epochs", "1", training__global_batch_size=batch)
        assert ended.code == 0, ended.err
        assert f"Samples: {count} for training" in ended.out


# -- custom losses, W&B ----------------------------------------------------------------------


CUSTOM = """
from neuropbr_dist.objectives import ALBEDO, register_loss

@register_loss("albedo_mse")
def albedo_mse(pred, target):
    return (pred[:, ALBEDO] - target[:, ALBEDO]).square().mean((1, 2, 3))
"""


def test_a_custom_loss_trains_and_is_logged(tmp_path):
    (tmp_path / "my_losses.py").write_text(CUSTOM)
    plain = run(tmp_path / "plain", "--epochs", "1")
    custom = run(
        tmp_path / "custom", "--epochs", "1",
        loss__custom={"albedo_mse": 0.5}, loss__custom_module=str(tmp_path / "my_losses.py"),
    )  # fmt: skip
    assert plain.code == custom.code == 0, custom.err
    a, b = metrics(tmp_path / "plain")[1], metrics(tmp_path / "custom")[1]
    (key,) = b.keys() - a.keys()
    assert "albedo_mse" in key and 0 < b[key] < 1
    assert b["train/G_loss"] == pytest.approx(a["train/G_loss"] + 0.5 * b[key], rel=1e-5)


def test_wandb_offline(tmp_path):
    ended = run(
        tmp_path, "--epochs", "1", env={"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        training__use_wandb=True, training__wandb_run_name="tiny", training__wandb_project="pbr",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    (log,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = log.read_bytes()
    for word in (b"train/G_loss", b"val/albedo_psnr", b"transformer_dim", b"tiny", b"pbr"):
        assert word in content
    assert (tmp_path / "wandb_id").read_text().strip() in log.name


# -- what is refused -------------------------------------------------------------------------

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
    "--render-curriculum 2": ["render_curriculum", "dirty"],
    "--render-curriculum 3": ["render_curriculum", "3", "0, 1, 2"],
    "--set data.val_ratio=0.95": ["data.val_ratio = 0.95", "leaves none to train on"],
    "--engine magic": ["training.engine", "magic", "auto, single, ddp, fsdp, deepspeed"],
    "--engine deepspeed": ["training.engine = deepspeed", "--ds FILE"],
    "--engine fsdp --ds ds_configs/zero1.json": ["--ds ds_configs/zero1.json", "fsdp"],
    "--ds no/such.json": ["--ds no/such.json", "no such file"],
    "--ds {folder}/clip.json": ["clip.json", "gradient_clipping = 5", "training.grad_clip_norm", "1.0"],
    "--ds {folder}/bad.json": ["bad.json", "line 1, column 2"],
    "--set loss.custom={{mse: 1}}": ["loss.custom", "'mse'", "loss.custom_module"],
    "--set loss.custom_module=no.py": ["loss.custom_module", "no.py"],
    "--resume {folder}": ["--resume {folder}", "no checkpoint there"],
    "--resume no/such": ["--resume no/such", "no such checkpoint or folder"],
    "--checkpoint-dir {folder}/bad.json": ["bad.json"],
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


def test_help_names_the_guides_flags():
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "train.py", "--help"], capture_output=True, text=True, check=True
    )
    for flag in (
        "--input-dir", "--output-dir", "--device", "--render-curriculum", "--use-dirty", "--checkpoint-dir",
        "--config", "--batch-size", "--resume", "--set", "--ds", "--debug",
    ):  # fmt: skip
        assert flag in done.stdout


# -- real launchers --------------------------------------------------------------------------


def launched(words):
    """`launch/train.py` under a launcher of this Python environment."""
    tool, *rest = words
    done = subprocess.run(
        [sys.executable, Path(sys.executable).parent / tool, *rest],
        cwd=ROOT, env=dict(os.environ) | ENVIRONMENT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


LAUNCHERS = {
    "deepspeed": ("deepspeed --num_accelerators 2 --master_port {port}", "--ds ds_configs/zero2.json"),
    "torchrun": ("torchrun --nproc-per-node=2 --master-port={port}", "--engine fsdp"),
}


@pytest.mark.multiprocess
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_resume_under_a_launcher_is_bit_for_bit(tmp_path, launcher):
    """The GAN starts after the stop: the discriminator has no moments at the save."""
    start, engine = LAUNCHERS[launcher]

    def train(*words):
        return launched([*start.format(port=free_port()).split(), "launch/train.py", *map(str, words)])

    ended = run(tmp_path / "whole", *engine.split(), world=2)
    assert ended.code == 0, ended.err
    cut = ["--checkpoint-dir", tmp_path / "cut"]
    said = train(*tiny_words(), *engine.split(), *cut, "--stop-after-epochs", "2")
    assert f"on 2 x cpu ({launcher} launcher)" in said
    said = train(*cut, "--resume", "auto")
    assert "(step 5)" in said and f"on 2 x cpu ({launcher} launcher)" in said
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
