"""Upstream's checkpoints in and out: the same outputs, the same tensors, and no code run."""

from __future__ import annotations

import pytest
import torch

from neuropbr_dist.checkpoint import Fragment, open_newest, save
from neuropbr_dist.commands.export import run as export
from neuropbr_dist.config import differences, from_yaml
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference import load_generator
from neuropbr_dist.inference.upstream import from_upstream, to_upstream
from neuropbr_dist.models import Discriminator
from tests.support import upstream_stand_in as upstream
from tests.support.damage import Payload
from tests.support.train_runs import SINGLE_PROCESS_SAVES, command, half_run, tensors, tiny_set

pytestmark = SINGLE_PROCESS_SAVES
VIEWS = torch.randn(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
BOUND = 2e-6
"""Sigmoids and unit vectors in float32, convolutions in another memory order."""


@pytest.fixture
def pth(tmp_path, monkeypatch):
    """A checkpoint as upstream's trainer writes it, pickled configuration and all."""
    path = tmp_path / "upstream.pth"
    torch.save(upstream.content(config=upstream.settings(monkeypatch)), path)
    return path


# -- in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("transformer", [True, False])
def test_a_converted_generator_gives_upstreams_outputs(tmp_path, monkeypatch, stride, transformer):
    content = upstream.content(stride, transformer, config=upstream.settings(monkeypatch, stride))
    torch.save(content, tmp_path / "upstream.pth")
    out = from_upstream(tmp_path / "upstream.pth", tmp_path / "model.safetensors")
    model = load_generator(out)
    expected = upstream.generate(content["generator_state_dict"], VIEWS)
    assert expected.std() > 0.1
    assert (model(VIEWS) - expected).abs().max() <= BOUND
    chosen = model.config.model
    assert (chosen.encoder_backbone, chosen.encoder_stride) == ("resnet18", stride)
    assert (chosen.transformer_dim, chosen.use_transformer) == (upstream.DIM, transformer)
    assert chosen.norm == chosen.encoder_norm == "batch"


def test_pictures_are_normalised_as_upstreams_configuration_says(pth, tmp_path):
    model = load_generator(from_upstream(pth, tmp_path / "model.safetensors"))
    views = torch.randint(0, 256, (1, 3, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    normalised = (views / 255 - mean[:, None, None]) / std[:, None, None]
    expected = upstream.generate(upstream.generator_state(), normalised)
    assert (model(views) - expected).abs().max() <= BOUND
    assert model.config.data.image_size == 64 and model.config.optimizer.g_betas == [0.5, 0.9]
    assert model.config.model.transformer_attn_drop == 0.1


def test_the_discriminator_gives_upstreams_logits(pth, tmp_path):
    run = from_upstream(pth, tmp_path / "run")
    config = load_generator(run).config
    discriminator = Discriminator(config.model).eval()
    stored = tensors(run)
    discriminator.load_state_dict(
        {
            name.split("/", 2)[2]: value
            for name, value in stored.items()
            if name.startswith(("discriminator/param/", "discriminator/buffer/"))
        }
    )
    maps = torch.rand(2, 8, 64, 64, generator=torch.Generator().manual_seed(2))
    expected = upstream.judge(upstream.discriminator_state(), maps)
    assert (discriminator(maps) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_training_goes_on_from_a_converted_run(pth, tmp_path):
    export(["from-upstream", str(pth), str(tmp_path / "run")])
    renders, maps = tiny_set()
    before = tensors(tmp_path / "run")
    words = [
        "--resume",
        tmp_path / "run",
        "--allow-data-change",
        "--stop-after-steps",
        "1",
        "--device",
        "cpu",
    ]
    words += ["--input-dir", renders, "--output-dir", maps]
    sizes = ["data.image_size=32", "data.num_workers=0", "training.gan_start_epoch=0"]
    ended = command(*words, *(word for size in sizes for word in ("--set", size)))
    assert ended.code == 0, ended.err
    after = tensors(tmp_path / "run")
    name = "generator/param/encoder.stem.0.weight"
    assert before.keys() == after.keys() and not torch.equal(before[name], after[name])
    assert before["generator/buffer/encoder.stem.1.num_batches_tracked"] == 7
    assert after["generator/buffer/encoder.stem.1.num_batches_tracked"] == 8
    ended = command("--resume", tmp_path / "run", *words[2:])
    assert ended.code == 0 and "Resuming" in ended.out


def test_a_folder_that_holds_a_run_is_refused(pth, tmp_path):
    from_upstream(pth, tmp_path / "run")
    with pytest.raises(UserError, match="holds a run; name another folder"):
        from_upstream(pth, tmp_path / "run")


def test_without_a_configuration_heads_are_asked_for(tmp_path, capsys):
    torch.save(upstream.content(), tmp_path / "upstream.pth")
    words = ["from-upstream", str(tmp_path / "upstream.pth"), str(tmp_path / "model.safetensors")]
    export([*words, "--set", f"model.transformer_num_heads={upstream.HEADS}", "--no-discriminator"])
    assert "--set model.transformer_num_heads=N" in capsys.readouterr().out
    model = load_generator(tmp_path / "model.safetensors")
    expected = upstream.generate(upstream.generator_state(), VIEWS)
    assert (model(VIEWS) - expected).abs().max() <= BOUND and not model.config.model.use_gan
    other = from_upstream(
        tmp_path / "upstream.pth",
        tmp_path / "other.safetensors",
        assignments=["model.transformer_num_heads=2"],
    )
    assert (load_generator(other)(VIEWS) - expected).abs().max() > 100 * BOUND  # the shapes don't tell


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, monkeypatch, prefix):
    content = upstream.content(config=upstream.settings(monkeypatch))
    content["generator_state_dict"] = {f"{prefix}{k}": v for k, v in content["generator_state_dict"].items()}
    torch.save(content, tmp_path / "upstream.pth")
    model = load_generator(from_upstream(tmp_path / "upstream.pth", tmp_path / "model.safetensors"))
    assert model.config.model.transformer_depth == upstream.DEPTH


# -- what is refused -------------------------------------------------------------------------


def test_pickled_code_is_named_and_not_run(tmp_path, monkeypatch):
    made = tmp_path / "made"
    torch.save(upstream.content(note=Payload(made)), tmp_path / "upstream.pth")
    with pytest.raises(UserError, match=r"runs code: (_?io)\.open.*Nothing was loaded.*--trust-pickle"):
        from_upstream(tmp_path / "upstream.pth", tmp_path / "model.safetensors")
    assert not made.exists() and not (tmp_path / "model.safetensors").exists()


def test_trusted_pickles_are_loaded(pth, tmp_path):
    """Objects that only a trusted file may bring; upstream's own classes need not be importable."""
    content = torch.load(pth, weights_only=False) | {"note": slice(1, 2)}
    torch.save(content, pth)
    with pytest.raises(UserError, match=r"builtins\.slice"):
        from_upstream(pth, tmp_path / "model.safetensors")
    from_upstream(pth, tmp_path / "model.safetensors", trust_pickle=True)
    assert load_generator(tmp_path / "model.safetensors").config.model.transformer_num_heads == upstream.HEADS


def test_what_is_no_checkpoint_of_upstream_is_named(tmp_path, monkeypatch):
    path, out = tmp_path / "upstream.pth", tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no such file"):
        from_upstream(path, out)
    path.write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"not a file of torch\.save"):
        from_upstream(path, out)
    torch.save({"model": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="no generator_state_dict in it; found: model"):
        from_upstream(path, out)
    torch.save(upstream.content(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"damaged|can't be read"):
        from_upstream(path, out)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"generator_state_dict": 3}, "generator_state_dict is int; expected tensors by name"),
        ({"generator_state_dict": {"a": 1.5}}, "generator_state_dict: 'a' is float; expected"),
        ({"generator_state_dict": {7: torch.zeros(1)}}, "generator_state_dict: 7 is Tensor; expected"),
        ({"discriminator_state_dict": 3}, "discriminator_state_dict is int; expected tensors by name"),
        ({"neuropbr_dist_config": 3}, "neuropbr_dist_config is int; expected YAML text"),
    ],
)
def test_what_holds_no_tensors_is_named(tmp_path, changed, named):
    torch.save({**upstream.content(), **changed}, tmp_path / "upstream.pth")
    with pytest.raises(UserError, match=named):
        from_upstream(tmp_path / "upstream.pth", tmp_path / "model.safetensors")


def test_other_architectures_are_named(tmp_path, monkeypatch):
    path, out = tmp_path / "upstream.pth", tmp_path / "model.safetensors"
    content = upstream.content()
    del content["generator_state_dict"]["decoder.heads.2.bias"]
    content["generator_state_dict"]["extra"] = torch.zeros(1)
    torch.save(content, path)
    with pytest.raises(UserError, match=r"decoder\.heads\.bias \(missing\)"):
        from_upstream(path, out)
    unet = {"generator_state_dict": {"encoder.conv.conv1.weight": torch.zeros(8, 3, 3, 3)}}
    torch.save(unet, path)
    with pytest.raises(UserError, match="its encoder is no ResNet"):
        from_upstream(path, out)
    simple = upstream.content(config=upstream.settings(monkeypatch, discriminator_type="simple"))
    torch.save(simple, path)
    with pytest.raises(UserError, match="discriminator_type = simple"):
        from_upstream(path, out)
    from_upstream(path, out, discriminator=False)


# -- out -------------------------------------------------------------------------------------


def test_there_and_back_every_tensor_is_the_same(pth, tmp_path):
    run = from_upstream(pth, tmp_path / "run")
    export(["to-upstream", str(run), str(tmp_path / "back.pth")])
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    given = upstream.content()
    for part in ("generator_state_dict", "discriminator_state_dict"):
        assert back[part].keys() == given[part].keys()
        assert all(torch.equal(back[part][name], value) for name, value in given[part].items())
    again = from_upstream(tmp_path / "back.pth", tmp_path / "again")
    first, second = tensors(run), tensors(again)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    with open_newest(run) as one, open_newest(again) as other:
        configs = from_yaml(one.config_yaml, ""), from_yaml(other.config_yaml, "")
    assert set(differences(*configs)) == {"training.checkpoint_dir"}


def test_an_exported_file_gives_the_generator_alone(pth, tmp_path):
    model = from_upstream(pth, tmp_path / "model.safetensors")
    back = torch.load(to_upstream(model, tmp_path / "back.pth"), weights_only=True)
    given = upstream.generator_state()
    assert all(torch.equal(back["generator_state_dict"][name], value) for name, value in given.items())
    assert "discriminator_state_dict" not in back


def test_what_upstream_has_no_class_for_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.encoder_type = unet"):
        to_upstream(half_run(), tmp_path / "out.pth")
    with pytest.raises(UserError, match=r"end in \.pth"):
        to_upstream(half_run(), tmp_path / "out.safetensors")


def test_a_run_with_group_norm_is_refused(pth, tmp_path):
    run = from_upstream(pth, tmp_path / "run")
    with open_newest(run) as opened:
        config = opened.config_yaml.replace("\n  norm: batch", "\n  norm: group")
        pieces = [Fragment.whole(name, value) for name, value in opened.read().items()]
        save(tmp_path / "group", "step_00000000", pieces, opened.state, config)
    with pytest.raises(
        UserError, match=r"model\.norm = group \(there: batch \| frozen_batch \| sync_batch\)"
    ):
        to_upstream(tmp_path / "group", tmp_path / "out.pth")
