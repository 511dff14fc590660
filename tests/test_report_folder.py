"""What a run records for its page, and how the page's Python half reads it."""

import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from neuropbr_dist.commands.report import run as report
from neuropbr_dist.errors import UserError
from neuropbr_dist.report.curves import MOST_POINTS, charts, marks, thin
from neuropbr_dist.report.folder import read_run
from neuropbr_dist.report.samples import choose
from neuropbr_dist.report.text import duration, history_table, state, tiles
from tests.support.train_runs import SINGLE_PROCESS_SAVES, half_run, resume, run, whole_run

pytestmark = SINGLE_PROCESS_SAVES
MAPS = {"albedo": "RGB", "roughness": "L", "metallic": "L", "normal": "RGB"}


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def look_steps(folder):
    (sample,) = (folder / "looks" / "clean").iterdir()
    return sorted(int(path.name.removeprefix("step_")) for path in sample.glob("step_*"))


@pytest.fixture
def stopped(tmp_path):
    return shutil.copytree(half_run(), tmp_path / "run", symlinks=True)


# -- what a run records ----------------------------------------------------------------------


def test_starts_and_ends_with_what_they_ran_on():
    start, end = history(whole_run())
    assert (start["event"], start["step"], end["event"], end["step"]) == ("start", 0, "end", 10)
    assert end["how"] == "finished" and start["time"] <= end["time"] and start["time"].endswith("+00:00")
    wanted = {"world_size": 1, "nodes": 1, "engine": "single", "launcher": "none", "precision": "fp32",
              "global_batch": 2, "micro_batch": 2, "micro_batches_per_step": 1, "train_samples": 5,
              "val_samples": 1, "image_size": 32}  # fmt: skip
    assert {name: start[name] for name in wanted} == wanted
    assert sum(start["devices"].values()) == 1 and "CPU" in next(iter(start["devices"]))
    assert {"neuropbr_dist", "python", "torch", "numpy"} <= start["versions"].keys()
    assert start["parameters"].keys() == {"generator", "discriminator"}


def test_maps_of_a_held_out_sample_at_every_validation():
    folder = whole_run()
    assert look_steps(folder) == [0, 3, 5, 8, 10]
    (sample,) = (folder / "looks" / "clean").iterdir()
    for place in ("true", "step_00000010"):
        pictures = {name: Image.open(sample / place / f"{name}.png") for name in MAPS}
        assert {name: (picture.mode, picture.size) for name, picture in pictures.items()} == {
            name: (mode, (32, 32)) for name, mode in MAPS.items()
        }
    assert sorted(path.name for path in sample.glob("view_*")) == ["view_0.png", "view_1.png", "view_2.png"]
    first, last = (np.asarray(Image.open(sample / f"step_{n:08d}" / "albedo.png"), int) for n in (0, 10))
    assert np.abs(first - last).mean() > 0.5


def test_a_resume_adds_a_start_and_takes_back_pictures_of_steps_that_are_done_again(stopped):
    (sample,) = (stopped / "looks" / "clean").iterdir()
    shutil.copytree(sample / "step_00000005", sample / "step_00000007")
    shutil.copytree(sample / "step_00000005", sample / "step_00000010")
    (sample / "step_00000010" / "albedo.png").write_bytes(b"stale")
    assert resume(stopped).code == 0
    assert look_steps(stopped) == [0, 3, 5, 8, 10]
    Image.open(sample / "step_00000010" / "albedo.png").verify()
    events = [(line["event"], line["step"]) for line in history(stopped)]
    assert events == [("start", 0), ("end", 5), ("start", 5), ("end", 10)]
    assert history(stopped)[1]["how"] == "--stop-after-epochs"


def test_overwrite_takes_history_pictures_and_page_too(stopped):
    report([str(stopped)])
    ended = run(stopped, "--overwrite", training__epochs=1)
    assert ended.code == 0, ended.err
    assert [line["event"] for line in history(stopped)] == ["start", "end"]
    assert look_steps(stopped) == [0, 3]
    assert not (stopped / "report.html").exists()


def test_a_run_that_fails_says_how(tmp_path):
    (tmp_path / "bad.py").write_text(
        "from neuropbr_dist.objectives import register_loss\n"
        "@register_loss('bad')\n"
        "def bad(pred, target):\n    return pred.mean((1, 2, 3)) * float('nan')\n"
    )
    folder = tmp_path / "run"
    words = {"loss__custom": {"bad": 1.0}, "loss__custom_module": str(tmp_path / "bad.py")}
    ended = run(folder, training__max_skipped_steps=3, **words)
    assert ended.code == 2
    assert history(folder)[-1]["how"].startswith("error: 3 updates of the generator in a row were not finite")
    kind, said = state(read_run(folder))
    assert kind == "failed" and "not finite" in said and "error:" not in said
    report([str(folder), "--debug"])


def test_epochs_count_from_one_everywhere():
    """`gan_start_epoch = 3` is the epoch that the console and the log call 3, and 0 is before training."""
    lines = [json.loads(line) for line in (whole_run() / "metrics.jsonl").read_text().splitlines()]
    assert min(line["epoch"] for line in lines if "train/D_loss" in line) == 3
    assert max(line["epoch"] for line in lines if "train/G_loss" in line and "train/D_loss" not in line) == 2
    assert [line["epoch"] for line in lines if "val/loss" in line] == [0, 1, 2, 3, 4]
    assert {line["epoch"] for line in lines if "train/G_loss" in line} == {1, 2, 3, 4}
    saves = {path.name: path.resolve().name for path in whole_run().glob("checkpoint_*")}
    assert saves == {"checkpoint_epoch_0002": "step_00000005", "checkpoint_epoch_0004": "step_00000010"}


# -- reading it ------------------------------------------------------------------------------


def test_what_is_no_runs_folder(tmp_path, stopped):
    def refused(path, words):
        with pytest.raises(UserError, match=words):
            report([str(path), "--debug"])

    refused(tmp_path / "none", "none: no such folder")
    refused(stopped / "config.yaml", "config.yaml: not a folder")
    refused(
        tmp_path, r"not a run's folder \(no config.yaml and no metrics.jsonl in it\); runs inside it: run"
    )
    (stopped / "metrics.jsonl").write_text('{"step": 1, "epoch": 1}\n[1]\n')
    refused(stopped, r"metrics.jsonl: not a run's metrics.jsonl \(line 1\)")
    (stopped / "config.yaml").write_text("data: [")
    refused(stopped, "config.yaml: not YAML")


def test_a_run_that_is_going(stopped):
    """Its last line is half written, its newest pictures have no metrics yet, and there is no end."""
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "epo')
    (sample,) = (stopped / "looks" / "clean").iterdir()
    (sample / "step_00000008").mkdir()
    lines = (stopped / "history.jsonl").read_text().splitlines(keepends=True)
    (stopped / "history.jsonl").write_text(lines[0])
    report([str(stopped), "--debug"])
    found = read_run(stopped)
    kind, said = state(found)
    assert kind == "open" and said.startswith("Running, or ended without a word; last written 20")
    assert found.step == 5 and "not yet, or without a word" in history_table(found)
    page = (stopped / "report.html").read_text()
    assert '"step":5' in page and '"step":8' not in page


def test_lines_that_a_power_cut_damaged_are_left_out(stopped, messages):
    """A hole of NUL bytes, and a line that was torn and written after."""
    whole = read_run(stopped)
    for name in ("metrics.jsonl", "history.jsonl"):
        content = (stopped / name).read_bytes()
        (stopped / name).write_bytes(b'{"step": 1, "ep\n' + content + b"\0" * 700 + b"\n")
    report([str(stopped), "--debug"])
    found = read_run(stopped)
    assert (found.metrics, found.history) == (whole.metrics, whole.history)
    assert f"{stopped / 'metrics.jsonl'}: 2 damaged line(s) left out, the first is line 1" in messages


def test_a_start_without_an_end_before_another_was_killed(stopped):
    start = (stopped / "history.jsonl").read_text().splitlines(keepends=True)[0]
    (stopped / "history.jsonl").write_text(start + start)
    table = history_table(read_run(stopped))
    assert table.count("without a word (killed?)") == 1 and table.count("not yet") == 1


def test_a_run_of_before_history_was_kept(stopped):
    (stopped / "history.jsonl").unlink()
    shutil.rmtree(stopped / "looks")
    report([str(stopped), "--debug"])
    assert state(read_run(stopped)) == ("open", "No record of its end; last step 5")


def test_nothing_of_the_run_can_break_out_of_the_page(stopped):
    config = stopped / "config.yaml"
    bad = "</script><script>alert(1)</script>"
    config.write_text(config.read_text().replace("wandb_project: neuropbr", f"wandb_project: '{bad}'"))
    lines = history(stopped)
    lines[0]["devices"] = {bad: 1}
    lines[-1]["how"] = bad
    (stopped / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "epoch": 2, "samples": 10, f"train/custom_{bad}": 1.0}) + "\n")
    report([str(stopped), "--debug"])
    page = (stopped / "report.html").read_text()
    assert "<script>alert" not in page and page.count("</script>") == 2
    assert "&lt;script&gt;alert" in page


def test_the_page_is_one_file_with_no_address_in_it():
    folder = whole_run()
    report([str(folder), "--debug"])
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    outside = page.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert "http:" not in outside and "https:" not in outside and "url(" not in outside and "src=" not in page
    assert "default-src 'none'" in page


def test_curves_scale_units_and_leave_gaps():
    groups = {group["title"]: group["charts"] for group in charts(read_run(whole_run()))}
    normal = next(chart for chart in groups["Each map"] if chart["title"] == "Normal · error")
    lines = [json.loads(line) for line in (whole_run() / "metrics.jsonl").read_text().splitlines()]
    train = [line["train/l1_normal"] / 2 for line in lines if "train/l1_normal" in line]
    assert [y for _, y in normal["lines"][0]["points"]] == pytest.approx(train, rel=1e-5)
    wait = next(chart for chart in groups["Speed and memory"] if chart["unit"] == "%")
    assert wait["title"] == "Waiting for data" and all(0 <= y <= 100 for _, y in wait["lines"][0]["points"])
    gan = next(chart for chart in groups["Losses"] if chart["title"] == "Adversarial losses")
    assert min(step for step, _ in gan["lines"][0]["points"]) == 6
    assert {mark["kind"]: mark["step"] for mark in marks(read_run(whole_run()))} == {"gan": 5}


def test_a_new_speed_gets_a_chart_without_being_asked_for(stopped):
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epoch": 2, "samples": 10, "speed/mfu": 0.4, "speed/new_thing": 7}\n')
    speeds = charts(read_run(stopped))[-1]["charts"]
    shown = {chart["title"]: (chart["unit"], chart["lines"][0]["points"]) for chart in speeds}
    assert shown["Model FLOPs utilisation"] == ("%", [(5, 40.0)])
    assert shown["new thing"] == ("", [(5, 7.0)])


def test_long_lines_are_averaged_and_missing_values_stay_out_of_the_mean():
    points = [(step, float(step % 2)) for step in range(10 * MOST_POINTS)]
    points[5] = (5, None)
    points[20:30] = [(step, None) for step in range(20, 30)]
    thinned = thin(points)
    assert len(thinned) == MOST_POINTS and thinned[-1] == (10 * MOST_POINTS - 1, 0.5)
    assert thinned[0] == (9, pytest.approx(4 / 9, rel=1e-5)) and thinned[2] == (29, None)


def test_of_many_validations_first_best_last_and_even_ones_between():
    steps = list(range(0, 1000, 10))
    chosen = choose(steps, best=640, most=9)
    assert len(chosen) == 9 and {0, 640, 990} <= set(chosen)
    assert max(b - a for a, b in itertools.pairwise(chosen)) <= 250
    assert choose(steps[:5], best=20, most=9) == steps[:5]
    assert choose(steps, best=None, most=4) == [0, 330, 660, 990]


def test_key_figures_have_units():
    shown = tiles(read_run(whole_run()))
    for words in ("10", "steps", "epoch 4 of 4", "dB", "°", "samples/s", "at first"):
        assert words in shown
    assert [duration(s) for s in (0.4, 12, 250, 7500, 360000)] == [
        "0 s",
        "12 s",
        "4 min 10 s",
        "2 h 5 min",
        "4 d 4 h",
    ]
