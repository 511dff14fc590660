"""The command line: the guide's flags, and `--set` for any field."""

import pytest

from neuropbr_dist.commands.train import config_of
from neuropbr_dist.config import TrainConfig, differences, from_yaml, load, set_text
from neuropbr_dist.errors import UserError
from tests.support.said import assert_names
from tests.support.tiny import field


def configured(*words):
    return config_of([str(word) for word in words])


@pytest.mark.parametrize(
    "assignment, value",
    [
        ("model.transformer_depth=6", 6),
        ("model.use_gan=false", False),
        ("model.encoder_backbone=resnet18", "resnet18"),
        ("model.encoder_stride=2", 2),
        ("model.encoder_channels=[8, 16]", [8, 16]),
        ("optimizer.g_lr=1e-4", 1e-4),
        ("optimizer.g_lr=1", 1.0),
        ("optimizer.g_betas=[0, 0.9]", [0.0, 0.9]),
        ("training.compile=off", "off"),
        ("training.cuda_graphs=off", "off"),
        ("training.cuda_graphs=on", "on"),
        ("training.compile=blocks", "blocks"),
        ("training.grad_clip_norm=null", None),
        ("training.grad_clip_norm=5e-1", 0.5),
        ("training.wandb_run_name=a=b", "a=b"),
        ("optimizer.scheduler=none", "none"),
        ("loss.custom={mse: 0.5, tv: 1}", {"mse": 0.5, "tv": 1.0}),
        (" training.epochs = 3", 3),
    ],
)
def test_set_takes_each_kind_of_value(assignment, value):
    cfg = TrainConfig()
    set_text(cfg, assignment)
    found = field(cfg, assignment.partition("=")[0].strip())
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "assignment, named",
    [
        ("model.depth=6", ["model.depth"]),
        ("model=6", ["'model'", "PART.FIELD"]),
        ("transformer_depth=6", ["transformer_depth", "PART.FIELD", "data, transform, model"]),
        ("training.epochs", ["training.epochs", "part.field=value"]),
        ("training.epochs=", ["training.epochs", "None", "int"]),
        ("training.epochs=[", ["training.epochs", "YAML"]),
        ("model.encoder_stride=3", ["model.encoder_stride", "3", "one of 1, 2"]),
        ("model.encoder_stride=true", ["model.encoder_stride", "True", "one of 1, 2"]),
        ("training.compile=on", ["training.compile", "auto, off, blocks"]),
        ("loss.custom={mse: much}", ["loss.custom", "much", "map of text to float"]),
        ("training.grad_clip_norm=low", ["training.grad_clip_norm", "low", "float, above 0, or none"]),
        ("optimizer.g_lr=nan", ["optimizer.g_lr", "nan"]),
        ("optimizer.g_lr=.inf", ["optimizer.g_lr", "inf"]),
    ],
)
def test_set_refuses_by_name(assignment, named):
    with pytest.raises(UserError) as found:
        set_text(TrainConfig(), assignment)
    assert_names(found.value, ["--set", *named])


FLAGS = {
    "--input-dir in --output-dir out": {"data.input_dir": "in", "data.output_dir": "out"},
    "--device cuda": {"training.device": "cuda"},
    "--render-curriculum 0": {"data.render_curriculum": 0},
    "--render-curriculum 1": {"data.render_curriculum": 1},
    "--render-curriculum 2": {"data.render_curriculum": 2},
    "--use-dirty": {"data.render_curriculum": 2},
    "--checkpoint-dir my_checkpoints": {"training.checkpoint_dir": "my_checkpoints"},
    "--config quick_test --batch-size 2": {
        "model.encoder_backbone": "resnet18", "training.epochs": 20, "training.batch_size": 2,
    },
    "--config lightweight": {"model.use_gan": False},
    "--epochs 7": {"training.epochs": 7},
    "--engine fsdp": {"training.engine": "fsdp"},
    "--engine-discriminator ddp": {"training.engine_discriminator": "ddp"},
    "--ds zero2": {"training.ds_config": "zero2"},
    "--shard node --engine fsdp": {"training.shard": "node"},
    "--compile off": {"training.compile": "off"},
}  # fmt: skip


@pytest.mark.parametrize("words", FLAGS)
def test_flags_set_the_fields_of_their_names(words):
    cfg = configured(*words.split())
    assert {name: field(cfg, name) for name in FLAGS[words]} == FLAGS[words]


def test_no_flags_is_the_default():
    assert configured() == load("default")


@pytest.mark.parametrize(
    "flag", ["--resume", "--overwrite", "--allow-data-change", "--debug", "--local_rank"]
)
def test_flags_that_are_no_fields_change_nothing(flag):
    words = [flag, "1"] if flag in ("--resume", "--local_rank") else [flag]
    assert configured(*words) == load("default")


def test_flags_win_over_files_and_set_over_flags(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training: {epochs: 3, batch_size: 3, seed: 3}\n")
    cfg = configured(
        "--config", path, "--epochs", 4, "--batch-size", 4, "--set", "training.epochs=5",
    )  # fmt: skip
    assert (cfg.training.epochs, cfg.training.batch_size, cfg.training.seed) == (5, 4, 3)


@pytest.mark.parametrize("curriculum", [0, 1, 2])
def test_render_curriculum_wins_over_a_files_legacy_flag(tmp_path, curriculum):
    path = tmp_path / "c.yaml"
    path.write_text("data: {use_dirty_renders: true}\n")
    assert configured("--config", path).data.render_curriculum == 2
    cfg = configured("--config", path, "--render-curriculum", curriculum)
    assert cfg.data.render_curriculum == curriculum
    cfg = configured("--config", path, "--set", f"data.render_curriculum={curriculum}")
    assert cfg.data.render_curriculum == curriculum


@pytest.mark.parametrize("curriculum", [0, 1])
def test_use_dirty_against_another_curriculum_is_refused(curriculum):
    with pytest.raises(UserError) as found:
        configured("--use-dirty", "--render-curriculum", curriculum)
    assert_names(found.value, ["--use-dirty", f"--render-curriculum {curriculum}"])


def test_resolving_twice_changes_nothing(tmp_path):
    words = ["--use-dirty", "--set", "training.use_amp=false", "--set", "transform.use_imagenet_stats=true"]
    cfg = configured(*words)
    assert cfg.training.precision == "fp32" and cfg.transform.mean == [0.485, 0.456, 0.406]
    from neuropbr_dist.config import from_yaml, resolve, to_yaml

    assert not differences(cfg, resolve(from_yaml(to_yaml(cfg), "")))


@pytest.mark.parametrize("words", [["--epochs", "two"], ["--epoch", "2"], ["--resume"], ["--no-such-flag"]])
def test_unknown_flags_and_words_end_with_code_2(words, capsys):
    with pytest.raises(SystemExit) as found:
        configured(*words)
    assert found.value.code == 2
    assert words[0] in capsys.readouterr().err


# -- YAML from strangers -----------------------------------------------------------------------

LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {" + ",".join(f"k{i}: 1" for i in range(50)) + "}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)  # fmt: skip
NOT_OURS = {
    "aliases": LAUGHS, "merges": MERGES, "deep": "[" * 5000 + "]" * 5000, "inside itself": "training: &a\n  epochs: *a\n",
    "long number": f"training: {{epochs: {'9' * 6000}}}\n", "hex": f"training: {{epochs: 0x{'f' * 6000}}}\n",
    "no date": "training: {epochs: 2001-13-45}\n", "tag": "training: {epochs: !!timestamp 'xx'}\n",
    "code": "training: !!python/object/apply:os.system ['true']\n", "key": "? [a, b]\n: 1\n", "two": "a: 1\n---\nb: 2\n",
    "surrogate": 'training: {checkpoint_dir: "a\\0b"}\n', "large": "training: {epochs: 9223372036854775808}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_OURS)
def test_yaml_that_is_no_configuration_is_one_short_line(name):
    with pytest.raises(UserError, match=r"^here: ") as caught:
        from_yaml(NOT_OURS[name], "here")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "text", ["{a}: {{epochs: 2}}\n{a}: {{epochs: 3}}\n", "{a}: {{epochs: 2, epochs: 3}}\n"]
)
def test_a_key_that_stands_twice_is_named(text):
    with pytest.raises(UserError, match=r"^here: .*'(training|epochs)' appears more than once \(line \d\)"):
        from_yaml(text.format(a="training"), "here")


def test_an_alias_is_allowed():
    cfg = from_yaml("optimizer:\n  g_betas: &b [0.5, 0.9]\n  d_betas: *b\n", "here")
    assert cfg.optimizer.g_betas == cfg.optimizer.d_betas == [0.5, 0.9]
