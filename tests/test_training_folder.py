"""A run's folder: what may be started in it, and what stands in it afterwards."""

import pytest

from tests.support.damage import rewrite_manifest
from tests.support.train_runs import (
    SINGLE_PROCESS_SAVES,
    assert_same_run,
    command,
    resume,
    run,
    state,
    tensors,
)

pytestmark = SINGLE_PROCESS_SAVES


# -- what is refused -------------------------------------------------------------------------


def test_starting_into_a_folder_that_holds_a_run(stopped):
    before = sorted(path.name for path in stopped.iterdir())
    ended = run(stopped)
    assert ended.code == 2 and ended.out == ""
    for words in (str(stopped), "--resume auto", "--overwrite", "--checkpoint-dir"):
        assert words in ended.err
    assert sorted(path.name for path in stopped.iterdir()) == before


@pytest.mark.parametrize("name", ["latest", "step_00000005", "latest/another"])
def test_a_run_does_not_begin_in_a_checkpoint(stopped, name):
    """`--checkpoint-dir RUN/latest` for RUN: a lock more in it would make the newest save a damaged one."""
    for words in (["--resume", "auto"], ["--overwrite"]):
        ended = run(stopped / name, *words)
        assert ended.code == 2 and "lies in a checkpoint" in ended.err, ended
    assert state(stopped)["step"] == 5


def test_a_start_removes_what_killed_ones_were_writing(stopped):
    left = f".{'0' * 32}.tmp"
    views = next((stopped / "looks").rglob("view_0.png")).parent
    page = stopped / f"{left}.html"  # somebody may be writing it just now
    for path in (stopped / f"{left}.yaml", page, views / f"{left}.png"):
        path.touch()
    (views / left).mkdir()
    assert resume(stopped, "--stop-after-epochs", "2").code == 0
    assert list(stopped.rglob(".*")) == [page]


def test_overwrite_starts_anew(uninterrupted, stopped):
    assert run(stopped, "--overwrite", training__save_every_n_epochs=2).code == 0
    assert_same_run(uninterrupted, stopped)
    assert len(state(stopped)["starts"]) == 1


def test_overwrite_that_is_refused_deletes_nothing(stopped):
    before = tensors(stopped)
    ended = run(stopped, "--overwrite", model__transformer_num_heads=3)
    assert ended.code == 2
    ended = command(
        "--input-dir", "no/such", "--output-dir", "no/such", "--checkpoint-dir", stopped, "--overwrite"
    )
    assert ended.code == 2 and "no/such" in ended.err
    assert tensors(stopped).keys() == before.keys()


def test_overwrite_contradicts_resume_auto(stopped):
    ended = resume(stopped, "--overwrite")
    assert ended.code == 2 and "--overwrite" in ended.err and "--resume auto" in ended.err
    assert state(stopped)["step"] == 5


@pytest.mark.parametrize(
    "assignment, named",
    [
        ("model.transformer_depth=2", "model.transformer_depth = 2 (saved: 1)"),
        ("model.transformer_num_heads=4", "model.transformer_num_heads = 4 (saved: 2)"),  # of the same shapes
        ("model.encoder_channels=[8, 8]", "model.encoder_channels = [8, 8] (saved: [8, 16])"),
        ("model.discriminator_ndf=8", "model.discriminator_ndf = 8 (saved: 4)"),
        ("model.use_gan=false", "model.use_gan = False (saved: True)"),
    ],
)
def test_another_architecture(stopped, assignment, named):
    ended = resume(stopped, "--set", assignment)
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert f"another architecture: {named}; leave it as saved" in ended.err
    assert state(stopped)["step"] == 5


def test_what_fits_the_config_but_not_the_tensors_is_refused_by_their_names(stopped):
    """A `config.yaml` that was edited: the run's own check of every tensor finds it."""
    edited = stopped / "step_00000005"
    config = (edited / "config.yaml").read_text().replace("transformer_depth: 1", "transformer_depth: 2")
    (edited / "config.yaml").write_text(config)
    rewrite_manifest(edited)
    ended = resume(stopped)
    assert ended.code == 2 and "another architecture" in ended.err and "generator/param/" in ended.err


def test_another_global_batch(stopped):
    ended = resume(stopped, "--set", "training.global_batch_size=3")
    assert ended.code == 2
    assert "global batch" in ended.err and "--allow-data-change" in ended.err
    ended = resume(stopped, "--set", "training.global_batch_size=3", "--allow-data-change")
    assert ended.code == 0, ended.err
    assert state(stopped)["cursor"] == 20 and state(stopped)["global_batch"] == 3


def test_another_seed_is_another_order(stopped):
    ended = resume(stopped, "--set", "training.seed=7")
    assert (
        ended.code == 2 and "training.seed 7; saved: 42" in ended.err and "--allow-data-change" in ended.err
    )
    assert resume(stopped, "--set", "training.seed=7", "--allow-data-change").code == 0


def test_another_data_set(stopped):
    words = ["--set", "data.val_ratio=0.4"]
    ended = resume(stopped, *words)
    assert ended.code == 2
    assert "data set" in ended.err and "--allow-data-change" in ended.err
    ended = resume(stopped, *words, "--allow-data-change")
    assert ended.code == 0, ended.err
    assert "Samples: 4 for training, 2 for validation" in ended.out


def test_another_folder_on_resume_has_one_spelling(stopped, tmp_path):
    ended = command("--resume", stopped, "--set", f"training.checkpoint_dir={tmp_path / 'other'}")
    assert ended.code == 2 and "--checkpoint-dir" in ended.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "path, named", [("none", "no such checkpoint or folder"), ("", "no checkpoint there")]
)
def test_resume_from_nothing(tmp_path, path, named):
    ended = command("--resume", tmp_path / path)
    assert ended.code == 2 and str(tmp_path) in ended.err and named in ended.err
    assert not any(tmp_path.iterdir()) and not (tmp_path.parent / "run.lock").exists()


# -- names on disk ---------------------------------------------------------------------------


def links(folder):
    return {path.name: path.resolve().name for path in folder.iterdir() if path.is_symlink()}


def test_names_are_the_guides(uninterrupted):
    found = links(uninterrupted)
    assert found.keys() == {"latest", "best_model", "checkpoint_epoch_0002", "checkpoint_epoch_0004"}
    assert found["latest"] == found["checkpoint_epoch_0004"] == "step_00000010"
    assert found["checkpoint_epoch_0002"] == "step_00000005"


def test_best_only_leaves_no_periodic_ones(tmp_path):
    assert run(tmp_path, training__save_best_only=True, training__save_every_n_epochs=1).code == 0
    assert links(tmp_path).keys() == {"latest", "best_model"}


def test_save_latest_every_n_epochs(tmp_path):
    """The best, the periodic and the last save are made all the same."""
    words = {"save_latest_every_n_epochs": 3, "save_every_n_epochs": 4, "val_every_n_epochs": 4, "epochs": 6}
    run(tmp_path, **{f"training__{name}": value for name, value in words.items()}, training__keep_latest=100)
    saves = sorted(int(path.name[5:]) for path in tmp_path.glob("step_*"))
    assert saves == [8, 10, 15]  # the ends of epochs 3 and 4, and of the run


def test_save_every_n_steps(tmp_path):
    run(tmp_path, training__save_every_n_steps=2, training__keep_latest=100)
    saves = sorted(int(path.name[5:]) for path in tmp_path.glob("step_*"))
    assert saves == [2, 3, 4, 5, 6, 8, 10]  # steps 3, 5, 8, 10 end an epoch
