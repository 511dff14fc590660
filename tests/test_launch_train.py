"""launch/train.py: what a run prints, writes and refuses, and resumes under real launchers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.distributed import ENVIRONMENT, ROOT, free_port
from tests.support.forked import TRAIN, Ended, call
from tests.support.material_files import write_set
from tests.support.tiny import FIELDS, set_words
from tests.support.train_runs import (
    SINGLE_PROCESS_SAVES,
    SIZE,
    assert_same_run,
    command,
    metrics,
    run,
    state,
    tensors,
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


def test_the_default_trains_on_stored_views_without_cameras(tmp_path):
    """The rendering loss needs none; a view to leave out doesn't exist there; the average of the weights is kept."""
    renders, maps = write_set(tmp_path, {f"sample_{i:04d}": f"material_{i}" for i in range(6)}, size=SIZE)
    fields = FIELDS | {"data.num_workers": 0, "training.batch_size": 5, "training.log_every_n_steps": 1,
                       "training.use_tensorboard": False}  # fmt: skip
    words = ["--input-dir", renders, "--output-dir", maps, "--device", "cpu", *set_words(fields)]
    ended = command(*words, "--checkpoint-dir", tmp_path / "run", "--stop-after-steps", "2")
    assert ended.code == 0 and ended.err == "", ended.err
    assert "No GAN" not in ended.out
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert saved["model"]["align"] == "none" and saved["data"]["drop_views"] == 0.2
    terms = [line for line in metrics(tmp_path / "run") if "train/G_loss" in line]
    assert all(line["train/render_loss"] > 0 for line in terms) and len(terms) == 2
    assert any(name.startswith("generator/ema/") for name in tensors(tmp_path / "run"))


def test_a_run_that_ends_before_its_gan_says_so(tmp_path):
    ended = run(tmp_path / "run", "--stop-after-steps", "1", training__gan_start_epoch=5)
    assert (
        "No GAN: training.gan_start_epoch = 5, but the run ends after epoch 4; model.use_gan = false"
        in ended.out
    )


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
        assert {"train/lr", "train/D_lr", "train/G_grad_norm", "train/normal_angle"} <= line.keys()
        assert line["train/ssim"] == pytest.approx(1 - line["train/ssim_loss"])
        assert ("train/D_grad_norm" in line) == (line["step"] > 5)
        assert {f"train/l1_{name}" for name in ("albedo", "roughness", "metallic", "normal")} <= line.keys()
        assert ("train/D_loss" in line) == (line["step"] > 5)
    for line in (line for line in lines if "val/loss" in line):
        for name in ("albedo", "roughness", "metallic", "normal"):
            assert {f"val/{name}_{metric}" for metric in ("psnr", "ssim", "mae", "rmse")} <= line.keys()
        assert {"val/psnr", "val/ssim", "val/mae", "val/relit_rmse", "val/normal_angle_mean"} <= line.keys()
        # What mean maps have is logged once, before training.
        assert ("mean_maps/albedo_mae" in line) == (line["step"] == 0)
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
    tags = events.Tags()["images"]
    assert [re.sub(r"\d+$", "", tag) for tag in sorted(tags)] == [
        f"val/{kind}/clean/sample_" for kind in ("comparison", "error", "views")
    ]
    for tag in tags:
        assert [event.step for event in events.Images(tag)] == [5, 10]  # epochs 2 and 4
    assert set(events.Tags()["tensors"]) == {"config/text_summary", "start/text_summary"}


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
    made = [path.stem.split("_")[1] for path in (tmp_path / "cache").rglob("*.npy")]
    assert sorted(made) == ["clean"] * 3 + ["maps"] * 3, "what the curriculum doesn't read isn't made"


def test_dirty_and_mixed_curricula(tmp_path):
    renders, maps = write_set(
        tmp_path, {f"sample_{i}": f"m{i}" for i in range(3)}, renders=("clean", "dirty"), size=32
    )
    for words, count, batch in (("--use-dirty", 2, 1), ("--render-curriculum 1", 4, 1)):
        folder = tmp_path / words.split()[0].strip("-")
        data = ["--input-dir", str(renders), "--output-dir", str(maps)]
        ended = run(folder, *words.split(), *data, "--epochs", "1", training__global_batch_size=batch)
        assert ended.code == 0, ended.err
        assert f"Samples: {count} for training" in ended.out


# -- an error nobody foresaw ------------------------------------------------------------------

BUGS = {
    "step": """
from neuropbr_dist.training.loop import Trainer

def step(self, host):
    raise ZeroDivisionError("a bug")

Trainer.step = step
""",
    "loader": """
from neuropbr_dist.data.loader import SlotDataset

def load(self, slots):
    raise ZeroDivisionError("a bug")

SlotDataset.__getitems__ = load
""",
}


def changed(folder: Path, code: str, **settings) -> Ended:
    """A run in which `code` has replaced something."""
    return call(code + TRAIN, "--checkpoint-dir", folder, *tiny_words(**settings))


@pytest.mark.parametrize("where", BUGS)
def test_a_bug_ends_the_process_with_its_traceback(tmp_path, where):
    """Loaders ignore the signal by which Python ends what is left of its children, then waits for them:
    a launcher would never hear of it."""
    ended = changed(tmp_path / "run", BUGS[where], data__num_workers=2)
    assert ended.code == 1 and "ZeroDivisionError: a bug" in ended.err


SLOW_SAVE = """
import time
from neuropbr_dist.checkpoint import saver
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.loop import Trainer

def write(*args, plain=saver.write, **kwargs):
    time.sleep(2)
    return plain(*args, **kwargs)

def step(self, host, plain=Trainer.step):
    if self.progress.step == 2:
        raise UserError("a fault")
    plain(self, host)

saver.write, Trainer.step = write, step
"""


def test_an_error_lets_the_save_in_flight_come_to_its_end(tmp_path):
    ended = changed(tmp_path / "run", SLOW_SAVE, training__save_every_n_steps=2)
    assert ended.code == 2 and ended.err == "error: a fault\n"
    assert state(tmp_path / "run")["step"] == 2


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


@pytest.mark.drill
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
