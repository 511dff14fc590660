"""DeepSpeed's JSON files against the run's configuration."""

import json
import re
from pathlib import Path

import pytest

from neuropbr_dist.config.deepspeed import anywhere, file_of, read, resolve
from neuropbr_dist.errors import UserError
from tests.support.said import assert_names

SHIPPED = sorted((Path(__file__).resolve().parents[1] / "ds_configs").glob("*.json"))
RUN = {
    "global_batch": 8, "micro_batch": 2, "accumulation": 2, "world_size": 2, "clip": 1.0, "precision": "bf16",
}  # fmt: skip


def written(folder, tree):
    path = folder / "ds.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return str(path)


def refused(folder, tree, **run):
    with pytest.raises(UserError) as found:
        resolve(written(folder, tree), **RUN | run)
    return str(found.value)


def autos(tree):
    if isinstance(tree, dict):
        return sum(map(autos, tree.values()))
    return int(tree == "auto")


def test_five_files_are_shipped():
    assert [path.stem for path in SHIPPED] == ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]


def test_a_name_is_a_shipped_file_and_a_path_is_a_path_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert file_of("zero2").samefile(SHIPPED[1]) and read("zero2")["zero_optimization"]["stage"] == 2
    (tmp_path / "zero2").write_text("no JSON")  # a name stays a name
    (tmp_path / "zero3.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert [anywhere(given) for given in ("zero2", "zero3.json", "./zero2", str(SHIPPED[0]))] == [
        "zero2", f"{tmp_path}/zero3.json", f"{tmp_path}/zero2", "zero1",
    ]  # fmt: skip
    assert read("zero3.json")["zero_optimization"]["stage"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "zero9",
            "--ds zero9: no such file; there are zero1, zero2, zero2_offload, zero3, zero3_offload, or a",
        ),
        ("ds_configs/zero2.json", "zero2.json: no such file; the one that comes with neuropbr is --ds zero2"),
        ("mine.json", "--ds mine.json: no such file"),
    ],
)
def test_a_file_that_is_not_there_is_named_with_those_that_are(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        read(given)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_shipped_files_are_filled(path, precision):
    raw, tree = read(str(path)), resolve(str(path), **RUN | {"precision": precision})
    assert autos(raw) == 6 and autos(tree) == 0
    assert tree["zero_optimization"] == raw["zero_optimization"]
    assert tree["zero_optimization"]["stage"] == int(path.stem[4])
    assert ("offload_optimizer" in tree["zero_optimization"]) == path.stem.endswith("offload")
    assert tree["train_batch_size"] == 8
    assert tree["train_micro_batch_size_per_gpu"] == 2
    assert tree["gradient_accumulation_steps"] == 2
    assert tree["gradient_clipping"] == 1.0
    assert tree["bf16"]["enabled"] is (precision == "bf16")
    assert tree["fp16"]["enabled"] is (precision == "fp16")


def test_stage_3_goes_without_deepspeeds_own_linear_layer(tmp_path):
    """Compiled, it lost the gradient of its input on a GPU, without a word."""
    given = {"zero_optimization": {"stage": 3}}
    assert resolve(written(tmp_path, given), **RUN)["zero_optimization"]["memory_efficient_linear"] is False
    given["zero_optimization"]["memory_efficient_linear"] = True
    assert_names(refused(tmp_path, given), ["zero_optimization.memory_efficient_linear", "True", "False"])


def test_ranks_that_are_short_count_in_deepspeeds_batch():
    run = RUN | {"global_batch": 7}  # 4 and 3 samples: two micro-batches of 2 on both
    assert resolve(str(SHIPPED[0]), **run)["train_batch_size"] == 8


def test_no_clipping_is_deepspeeds_zero():
    assert resolve(str(SHIPPED[0]), **RUN | {"clip": None})["gradient_clipping"] == 0.0


def test_absent_values_are_filled_as_auto(tmp_path):
    path = written(tmp_path, {"zero_optimization": {"stage": 2}})
    shipped = resolve(str(SHIPPED[1]), **RUN)
    filled = resolve(path, **RUN)
    for key in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping", "bf16", "fp16"):
        assert filled[key] == shipped[key]


def test_values_that_agree_are_taken(tmp_path):
    tree = {
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2,
        "gradient_clipping": 1, "bf16": {"enabled": True}, "fp16": {"enabled": False},
        "zero_optimization": {"stage": 1},
    }  # fmt: skip
    assert resolve(written(tmp_path, tree), **RUN)["train_batch_size"] == 8


@pytest.mark.parametrize(
    "change, key, field, made",
    [
        ({"train_batch_size": 16}, "train_batch_size = 16", "training.global_batch_size", "8"),
        (
            {"train_micro_batch_size_per_gpu": 4},
            "train_micro_batch_size_per_gpu = 4",
            "training.batch_size",
            "2",
        ),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps = 1", "training.batch_size", "2"),
        ({"gradient_clipping": 0.5}, "gradient_clipping = 0.5", "training.grad_clip_norm", "1.0"),
        ({"bf16": {"enabled": False}}, "bf16.enabled = False", "training.precision", "True"),
        ({"fp16": {"enabled": True}}, "fp16.enabled = True", "training.precision", "False"),
    ],
)
def test_contradictions_name_both_places(tmp_path, change, key, field, made):
    text = refused(tmp_path, {"zero_optimization": {"stage": 2}} | change)
    assert_names(text, ["ds.json", key, field, made, '"auto"'])


@pytest.mark.parametrize(
    "section, field", [("optimizer", "optimizer.g_lr"), ("scheduler", "optimizer.scheduler")]
)
def test_sections_that_the_run_sets_itself(tmp_path, section, field):
    text = refused(tmp_path, {"zero_optimization": {"stage": 2}, section: {"type": "Adam"}})
    assert_names(text, ["ds.json", section, field, "remove"])


def test_auto_that_nothing_fills(tmp_path):
    text = refused(tmp_path, {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}})
    assert_names(text, ["ds.json", "zero_optimization.reduce_bucket_size", "auto"])


@pytest.mark.parametrize("tree", [{}, {"zero_optimization": {"stage": 0}}])
def test_stage_0_in_low_precision_names_ddp(tmp_path, tree):
    text = refused(tmp_path, tree)
    assert_names(text, ["ds.json", "zero_optimization.stage = 0", "bf16", "--engine ddp"])
    assert resolve(written(tmp_path, tree), **RUN | {"precision": "fp32"})["zero_optimization"]["stage"] == 0


@pytest.mark.parametrize("stage", [4, -1, "2", "auto", None])
def test_stages_that_are_none(tmp_path, stage):
    text = refused(tmp_path, {"zero_optimization": {"stage": stage}})
    assert_names(text, ["ds.json", "zero_optimization.stage", repr(stage), "0, 1, 2, 3"])


@pytest.mark.parametrize("section", ["zero_optimization", "bf16", "fp16"])
def test_sections_must_be_objects(tmp_path, section):
    text = refused(tmp_path, {"zero_optimization": {"stage": 2}} | {section: True})
    assert_names(text, ["ds.json", section, "True", "object"])


@pytest.mark.parametrize(
    "text, named",
    [
        ('{\n  "a": 1,\n}', ["line 3", "column 1"]),
        ('{"a": 1', ["line 1", "column 8"]),
        ("", ["line 1", "column 1"]),
        ("[1]", ["JSON object", "list"]),
    ],
)
def test_files_that_are_not_json_objects(tmp_path, text, named):
    assert_names(refused(tmp_path, text), ["ds.json", *named])


def test_no_such_file(tmp_path):
    with pytest.raises(UserError) as found:
        resolve(str(tmp_path / "none.json"), **RUN)
    assert_names(found.value, ["--ds", "none.json", "no such file"])
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        resolve(str(tmp_path), **RUN)
