"""A stopped and resumed run equals one that was never stopped, bit for bit."""

import json
import os
import pty
import select
import shutil
import signal
import time

import psutil
import pytest
import torch
import yaml

from neuropbr_dist.commands.report import run as report
from neuropbr_dist.config import TrainConfig, with_fields
from neuropbr_dist.data.builtin.cache import BuiltinCache
from neuropbr_dist.errors import UserError
from neuropbr_dist.training.resume import check_asked
from neuropbr_dist.training.state import Progress
from tests.drills.kill import wait_until
from tests.support.forked import TRAIN, Launch
from tests.support.slurm import Gate
from tests.support.train_runs import (
    SINGLE_PROCESS_SAVES,
    assert_same_run,
    command,
    half_run,
    logged_samples,
    metrics,
    resume,
    run,
    start,
    state,
    tensors,
    timings,
    tiny_set,
    tiny_words,
)

pytestmark = SINGLE_PROCESS_SAVES


# -- bit for bit -----------------------------------------------------------------------------


def test_the_discriminator_has_no_moments_before_the_gan_starts():
    saved = tensors(half_run())
    moments = [name for name in saved if name.startswith("discriminator/exp_avg")]
    assert moments and not any(saved[name].any() for name in moments)


def test_resumed_at_an_epochs_end(uninterrupted, stopped):
    ended = resume(stopped)
    assert ended.code == 0, ended.err
    assert "Resuming from" in ended.out and "(step 5)" in ended.out
    assert_same_run(uninterrupted, stopped)
    assert [start["step"] for start in state(stopped)["starts"]] == [0, 5]


def test_resumed_amid_an_epoch_twice(uninterrupted, tmp_path):
    run(tmp_path, "--stop-after-steps", "4", training__save_every_n_epochs=2)
    assert resume(tmp_path, "--stop-after-steps", "7").code == 0
    assert resume(tmp_path).code == 0
    assert_same_run(uninterrupted, tmp_path)


def test_logs_that_a_power_cut_damaged_block_nothing(tmp_path):
    """A hole of NUL bytes, half a line amid the file, and a NUL tail, in every log of the run."""
    run(tmp_path, "--stop-after-steps", "5", training__log_samples=True)
    logs = [tmp_path / f"{name}.jsonl" for name in ("metrics", "samples", "history", "timings")]
    for log in logs:
        first, *rest = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(first[:9] + b"\0" * 600 + first[9:] + first[:9] + b"\n" + b"".join(rest) + b"\0" * 99)
    ended = resume(tmp_path)
    assert ended.code == 0, ended.err
    assert f"{logs[0]}: 2 damaged line(s) left out, the first is line 1" in ended.out
    assert [line["step"] for line in logged_samples(tmp_path)] == list(range(2, 11))
    assert [line["step"] for line in metrics(tmp_path)][-1] == 10
    assert b"\0" not in logs[0].read_bytes() + logs[1].read_bytes()
    report([str(tmp_path), "--debug"])


def test_a_run_keeps_its_alignment(stopped):
    """Resolved at the first start and saved; cameras that are gone don't make it another network."""
    saved = (stopped / "config.yaml").read_text()
    assert "align: plane" in saved and "skip_merge: auto" not in saved
    refused = resume(stopped, "--set", "model.align=none")
    assert refused.code == 2 and "another architecture: model.align = none (saved: plane)" in refused.err
    renders, maps = tiny_set()
    shutil.copytree(renders, stopped / "renders", ignore=shutil.ignore_patterns("cameras.json"))
    refused = resume(stopped, "--input-dir", str(stopped / "renders"), "--output-dir", str(maps))
    assert refused.code == 2 and "model.align = plane needs cameras" in refused.err


def test_other_schedulers_survive(tmp_path):
    """The plateau's memory, and dropout keyed by step."""
    settings = {
        "optimizer__scheduler": "plateau", "optimizer__patience": 0, "optimizer__g_lr": 0.05,
        "model__transformer_proj_drop": 0.1, "model__transformer_drop_path_rate": 0.1,
        "optimizer__scheduler_warmup_epochs": 0, "training__epochs": 4, "model__align": "none",
    }  # fmt: skip
    run(tmp_path / "whole", **settings)
    run(tmp_path / "cut", "--stop-after-epochs", "3", **settings)
    assert state(tmp_path / "cut")["plateau"]["generator"]["factor"] < 1
    assert resume(tmp_path / "cut").code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.fixture(scope="module")
def ten_epochs(tmp_path_factory):
    """A whole run, long enough to be met by a signal. Not to be written to."""
    folder = tmp_path_factory.mktemp("ten") / "run"
    assert run(folder, training__epochs=10).code == 0
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_run_goes_on(ten_epochs, tmp_path, number):
    launch = start(tmp_path / "cut", training__epochs=10)
    while "step 3 " not in launch.said():
        assert launch.process.is_alive()
        time.sleep(0.01)
    os.kill(launch.process.pid, number)
    os.kill(launch.process.pid, number)  # Slurm and a forwarding trap: one warning, twice
    ended = launch.wait()
    assert ended.code == 0, ended.err
    assert "Stopped (signal) after step" in ended.out and "Done" not in ended.out
    step = state(tmp_path / "cut")["step"]
    assert 3 <= step < 25
    marker = tmp_path / "cut" / "requeue"
    assert marker.read_text().strip() == number.name
    assert resume(tmp_path / "cut").code == 0
    assert not marker.exists()
    assert_same_run(ten_epochs, tmp_path / "cut")


ON_A_TERMINAL = """
import os, sys
os.setsid()
terminal = os.open(os.environ["TERMINAL"], os.O_RDWR)
for descriptor in range(3):
    os.dup2(terminal, descriptor)
sys.stdout, sys.stderr = open(1, "w"), open(2, "w")
"""


def test_a_closed_terminal_saves_and_the_run_goes_on(ten_epochs, tmp_path):
    """Not the signal alone: from then on nothing can be written to stdout nor to stderr."""
    ours, theirs = pty.openpty()
    words = [
        "--checkpoint-dir",
        str(tmp_path / "cut"),
        *tiny_words(training__epochs=10, training__log_samples=True),
    ]
    launch = Launch(words, env={"TERMINAL": os.ttyname(theirs)}, program=ON_A_TERMINAL + TRAIN)
    shown = b""
    while len(logged_samples(tmp_path / "cut")) < 3:
        assert launch.process.is_alive(), shown
        if select.select([ours], [], [], 0.01)[0]:
            shown += os.read(ours, 1 << 16)
    os.close(theirs)
    os.close(ours)
    assert launch.wait().code == 0
    done = len(logged_samples(tmp_path / "cut"))
    assert state(tmp_path / "cut")["step"] == done < 25
    assert (tmp_path / "cut" / "requeue").read_text().strip() == "SIGHUP"
    assert resume(tmp_path / "cut").code == 0
    assert_same_run(ten_epochs, tmp_path / "cut")


def test_a_signal_to_every_process_spares_the_loaders(uninterrupted, tmp_path):
    """As Slurm signals a step: the trainer's loader processes get it, too."""
    launch = start(tmp_path, data__num_workers=2, training__save_every_n_epochs=2)
    while "step 3 " not in launch.said():
        assert launch.process.is_alive()
        time.sleep(0.01)
    loaders = psutil.Process(launch.process.pid).children(recursive=True)
    assert len(loaders) >= 2
    for process in (*loaders, launch.process):
        os.kill(process.pid, signal.SIGTERM)
    ended = launch.wait()
    assert ended.code == 0 and ended.err == "", ended.err
    assert "Stopped (signal) after step" in ended.out
    assert resume(tmp_path, "--set", "data.num_workers=0").code == 0
    assert_same_run(uninterrupted, tmp_path)


@pytest.mark.multiprocess
def test_from_a_signal_to_the_save_it_is_at_most_the_step_under_way(tmp_path):
    """One rank's signal in a step: that step is the last one, and the run tells how long it took."""
    gate = Gate(tmp_path)
    launch = start(tmp_path / "run", *gate.words, world=2, training__val_every_n_epochs=10)
    wait_until(launch, lambda: gate.reached(2))
    done = metrics(tmp_path / "run")[-1]["step"]
    os.kill(launch.processes[1].pid, signal.SIGTERM)
    gate.open()
    ended = launch.wait()
    assert ended.code == 0, ended.err
    assert f"Stopped (signal) after step {done + 1}" in ended.out
    assert state(tmp_path / "run")["step"] == done + 1
    (stop,) = [line["stop"] for line in timings(tmp_path / "run") if "stop" in line]
    assert stop["signal_to_saved_s"] > 0 and stop["longest_step_s"] > 0 and stop["longest_save_s"] > 0


def test_a_killed_run_goes_on_from_its_last_save(uninterrupted, tmp_path):
    """No time to save: the steps since are done, and logged, again."""
    launch = start(tmp_path, training__save_every_n_epochs=2, training__save_every_n_steps=2)
    while "step 6 " not in launch.said():
        assert launch.process.is_alive()
        time.sleep(0.005)
    launch.process.kill()
    assert launch.wait().code != 0
    ended = resume(tmp_path, "--set", "training.save_every_n_steps=null")
    assert ended.code == 0, ended.err
    assert_same_run(uninterrupted, tmp_path)


def test_a_damaged_newest_save_falls_back_to_the_one_before(uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted, tmp_path / "run", symlinks=True)
    damage(folder / "step_00000010")
    ended = resume(folder)
    assert ended.code == 0, ended.err
    assert "WARNING: checkpoint is damaged" in ended.out and "falling back to" in ended.out
    assert "(step 8)" in ended.out
    assert_same_run(uninterrupted, folder)


def test_damaged_saves_only_stop_the_run(stopped):
    damage(stopped / "step_00000003")
    damage(stopped / "step_00000005")
    before = metrics(stopped)
    ended = resume(stopped)
    assert ended.code == 2 and "no checkpoint in" in ended.err and "step_00000005" in ended.err
    assert metrics(stopped) == before


def damage(checkpoint):
    victim = max((path for path in checkpoint.iterdir()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)


# -- what is taken up ------------------------------------------------------------------------


def test_metrics_after_the_save_are_cut_back(uninterrupted, tmp_path):
    """Resumed from an older save: what came after it is done, and logged, again."""
    folder = shutil.copytree(uninterrupted, tmp_path / "run", symlinks=True)
    before = metrics(folder)
    ended = command("--resume", folder / "checkpoint_epoch_0002", "--stop-after-steps", "6")
    assert ended.code == 0, ended.err
    assert metrics(folder) == [line for line in before if line["step"] <= 6]
    assert (folder / "latest").resolve().name == "step_00000006"
    assert resume(folder).code == 0
    assert_same_run(uninterrupted, folder)


@pytest.mark.parametrize("name", ["", "latest", "checkpoint_epoch_0002", "step_00000005"])
def test_resume_takes_a_folder_and_each_of_its_names(uninterrupted, stopped, name):
    ended = command("--resume", stopped / name)
    assert ended.code == 0, ended.err
    assert f"run folder {stopped}" in ended.out
    assert_same_run(uninterrupted, stopped)


def test_resume_into_another_folder(uninterrupted, stopped, tmp_path):
    other = tmp_path / "other"
    words = ["--resume", stopped / "checkpoint_epoch_0002", "--checkpoint-dir", other]
    assert command(*words).code == 0
    branch = tensors(other)
    assert all(torch.equal(x, branch[name]) for name, x in tensors(uninterrupted).items())
    assert [line["step"] for line in metrics(other)][:1] == [6]
    assert not (stopped / "step_00000006").exists()
    ended = command(*words)  # it holds a run by now
    assert ended.code == 2
    assert "--resume auto" in ended.err and "--overwrite" in ended.err
    assert command(*words, "--overwrite").code == 0
    assert [line["step"] for line in metrics(other)][:1] == [6]


def test_the_best_so_far_survives(stopped):
    best = state(stopped)["best"]
    target = (stopped / "best_model").resolve()
    # Nothing is learned at this rate, so nothing is better.
    ended = resume(stopped, "--set", "loss.w_l1=2")
    assert ended.code == 0, ended.err
    assert state(stopped)["best"] == best
    assert "Saved best model" not in ended.out
    assert (stopped / "best_model").resolve() == target and target.is_dir()


def test_epochs_on_resume_is_the_total_and_the_schedule_keeps_its_horizon(stopped):
    ended = resume(stopped, "--epochs", "6")
    assert ended.code == 0
    assert "training.epochs: 4 -> 6 (command line)" in ended.out
    assert state(stopped)["cursor"] == 6 * 5
    saved = yaml.safe_load((stopped / "config.yaml").read_text())
    assert saved["training"]["epochs"] == 6
    assert saved["optimizer"]["scheduler_epochs"] == 4
    last = metrics(stopped)[-2]
    assert last["train/lr"] == saved["optimizer"]["scheduler_min_lr"]


def test_a_finished_run_has_nothing_to_do(uninterrupted, tmp_path):
    folder = shutil.copytree(uninterrupted, tmp_path / "run", symlinks=True)
    ended = resume(folder)
    assert ended.code == 0 and "Done: 10 steps" in ended.out
    assert_same_run(uninterrupted, folder)
    saves = [sorted(path.name for path in one.glob("step_*")) for one in (uninterrupted, folder)]
    assert saves[0] == saves[1], "a copy of the newest save would push an older one out"


def test_settings_on_resume_are_said(stopped):
    ended = resume(stopped, "--batch-size", "1", "--set", "training.log_every_n_steps=2")
    assert ended.code == 0
    assert "training.batch_size: 2 -> 1 (command line)" in ended.out
    assert "training.log_every_n_steps: 1 -> 2 (command line)" in ended.out
    assert "Batch: 2 = up to 2 x 1" in ended.out


def test_a_config_named_on_resume_is_said_to_be_left_alone(stopped):
    ended = resume(stopped, "--config", "demo")
    assert ended.code == 0, ended.err
    assert "--config demo" in ended.out and "saved" in ended.out
    assert yaml.safe_load((stopped / "config.yaml").read_text())["model"]["transformer_dim"] == 16


def test_resume_auto_in_an_empty_folder_starts_fresh(uninterrupted, tmp_path):
    ended = run(tmp_path / "new", "--resume", "auto", training__save_every_n_epochs=2)
    assert ended.code == 0
    assert f"No checkpoint in {tmp_path / 'new'}: starting fresh" in ended.out
    assert_same_run(uninterrupted, tmp_path / "new")


def test_resume_auto_after_a_death_before_the_first_save(uninterrupted, tmp_path):
    """The log of the first attempt goes: step 0 stands in it once."""
    first = json.dumps({"step": 0, "epoch": 0, "samples": 0, "val/loss": 9.0})
    (tmp_path / "metrics.jsonl").write_text(first + "\n")
    assert run(tmp_path, "--resume", "auto", training__save_every_n_epochs=2).code == 0
    assert_same_run(uninterrupted, tmp_path)


def test_stopped_before_the_first_step(uninterrupted, tmp_path):
    run(tmp_path, "--stop-after-steps", "0", training__save_every_n_epochs=2)
    assert state(tmp_path)["step"] == 0
    assert resume(tmp_path).code == 0
    assert_same_run(uninterrupted, tmp_path)


# -- a folder from a stranger ------------------------------------------------------------------


def test_what_a_saved_configuration_names_is_asked_for(tmp_path):
    def fields(**parts):
        return with_fields(TrainConfig(), **parts)

    for named, word in (
        ({"loss": {"custom_module": "evil.py"}}, "--set loss.custom_module=evil.py"),
        ({"training": {"ds_config": "/home/a/ds.json"}}, "--ds /home/a/ds.json"),
        ({"training": {"ds_config_discriminator": "/home/a/ds.json"}}, "--ds-discriminator /home/a/ds.json"),
        ({"data": {"builtin_cache": str(tmp_path)}}, f"--set data.builtin_cache={tmp_path}"),
    ):
        with pytest.raises(UserError) as caught:
            check_asked(fields(**named), TrainConfig(), "--resume auto")
        assert word in str(caught.value)
        check_asked(fields(**named), fields(**named), "--resume auto")  # said again
    check_asked(fields(training={"ds_config": "zero2"}), TrainConfig(), "--resume auto")
    BuiltinCache(tmp_path, 0, 0).folder.parent.mkdir()
    check_asked(fields(data={"builtin_cache": str(tmp_path)}), TrainConfig(), "--resume auto")


# -- data that go bad under a run ----------------------------------------------------------------


@pytest.mark.multiprocess
@pytest.mark.parametrize("world, file", [(1, "clean/{}/1.png"), (2, "clean/{}/1.png")])
def test_a_damaged_picture_ends_the_run_after_a_save(tmp_path, world, file):
    shutil.copytree(tiny_set()[0].parent, tmp_path / "set")
    first = run(tmp_path / "first", "--stop-after-epochs", "1", training__log_samples=True)
    assert first.code == 0, first.err
    last = logged_samples(tmp_path / "first")[1]["samples"]["1"][-1]
    picture = tmp_path / "set/input" / last / "1.png"
    data = bytearray(picture.read_bytes())
    data[len(data) // 2] ^= 0xFF
    picture.write_bytes(data)
    words = tiny_words()
    words[1], words[3] = str(tmp_path / "set/input"), str(tmp_path / "set/output")
    ended = command("--checkpoint-dir", tmp_path / "run", *words, world=world)
    assert ended.code == 2 and str(picture) in ended.err and "Traceback" not in ended.err, ended.err
    assert state(tmp_path / "run")["step"] == 1


def test_a_save_that_calls_its_starts_lives_is_read():
    start = {"step": 0, "world_size": 1, "engine": "single"}
    assert Progress.of({"step": 3, "cursor": 6, "lives": [start]}).starts == [start]
