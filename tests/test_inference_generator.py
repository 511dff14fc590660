"""Loading a generator: the same outputs as in training, from whatever holds its weights."""

import shutil

import pytest
import torch

from neuropbr_dist.checkpoint.weights import read_weights
from neuropbr_dist.errors import UserError
from neuropbr_dist.inference import load_generator, predict
from neuropbr_dist.inference.generator import build
from neuropbr_dist.inference.samples import _as_counted, _place
from tests.support.damage import Payload, flip_a_byte
from tests.support.on_gpus import exact_convolutions
from tests.support.said import said
from tests.support.trained_run import normalised, reference, some_views, trained_run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process saves and loads


@pytest.fixture(scope="module")
def run():
    return trained_run()[0]


@pytest.mark.parametrize("name", [".", "latest", "best_model"])
def test_outputs_are_those_of_the_trained_generator(run, name):
    generator, config = reference(run / name)
    model = load_generator(run / name)
    views = some_views()
    with torch.no_grad():
        expected = generator(normalised(views, config)[None])
    assert torch.equal(model(views[None]), expected)
    assert torch.equal(model(normalised(views, config)[None]), expected)
    assert torch.equal(predict(model, views), expected[0])
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.config == config and model.step == 2


def test_batch_norm_statistics_are_the_trained_ones(run):
    counts = [b for name, b in load_generator(run).named_buffers() if name.endswith("num_batches_tracked")]
    assert counts and all(count.item() == 2 for count in counts)


def test_an_older_checkpoint_loads_by_its_folder(run):
    older, newer = sorted(path for path in run.glob("step_*"))
    assert load_generator(older).step == 1 and load_generator(newer).step == 2


def test_a_damaged_newest_checkpoint_falls_back_loudly_and_none_is_an_error(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    older, newer = sorted(copy.glob("step_*"))
    flip_a_byte(newer / "shard_00000_000.bin")
    with said() as warnings:
        model = load_generator(copy)
    assert model.origin == older and model.step == 1
    assert len(warnings) == 2 and "shard_00000_000.bin: altered" in warnings[0]
    (older / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint in .* is good: .*manifest.json: missing.*altered"):
        load_generator(copy)


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="none: no such checkpoint or folder"):
        load_generator(tmp_path / "none")
    with pytest.raises(UserError, match="no checkpoint in this folder"):
        load_generator(tmp_path)


def test_pickles_are_refused_and_never_run(tmp_path):
    made = tmp_path / "made"
    for name in ("model.pth", "model.safetensors"):
        torch.save({"generator": Payload(made)}, tmp_path / name)
        with pytest.raises(
            UserError, match=r"pickled files such as \.pth are not read|not a safetensors file"
        ):
            load_generator(tmp_path / name)
    assert not made.exists()


def test_bf16_is_close_to_fp32(run):
    model, views = load_generator(run), some_views()
    exact, rounded = predict(model, views, precision="fp32"), predict(model, views, precision="bf16")
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().mean() < 0.01


@pytest.mark.parametrize(("side", "nearest"), [(30, "28 or 32"), (2, "4"), (33, "32 or 36")])
def test_sizes_that_the_encoder_cannot_take_name_the_nearest(run, side, nearest):
    with pytest.raises(UserError, match=f"{side} px a side.* multiples of 4 px; nearest: {nearest} "):
        predict(load_generator(run), some_views(side))


@pytest.mark.parametrize("side", [16, 36, 64])
def test_any_multiple_of_the_stride_goes_through(run, side):
    assert predict(load_generator(run), some_views(side)).shape == (8, side, side)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_outputs_are_those_of_the_cpu(run):
    model, views = load_generator(run), some_views()
    on_cpu = predict(model, views)
    with exact_convolutions():
        on_gpu = predict(model.cuda(), views, precision="fp32")
    assert (on_gpu - on_cpu).abs().max() < 1e-4


def test_weights_that_are_not_finite_infer_nothing(run):
    weights, origin = read_weights(run)
    name = next(iter(weights.tensors))
    weights.tensors[name].view(-1)[0] = float("nan")
    with pytest.raises(UserError, match=rf"1 of its weights are not finite \({name}\)"):
        build(weights, origin)


def test_samples_are_counted_as_a_person_does():
    names = ["sample_10", "sample_2", "sample_1", "brick", "sample_02b"]

    class Named:
        def __init__(self, name, renders):
            self.name, self.renders, self.key = name, renders, f"{renders}/{name}"

    counted = sorted(
        (Named(name, renders) for name in names for renders in ("dirty", "clean")), key=_as_counted
    )
    assert [one.key for one in counted][:4] == [
        "clean/brick",
        "dirty/brick",
        "clean/sample_1",
        "dirty/sample_1",
    ]
    assert [one.name for one in counted][4::2] == ["sample_2", "sample_02b", "sample_10"]
    assert counted[_place(counted, "sample_10", "here")].key == "clean/sample_10"
    assert counted[_place(counted, "dirty/sample_2", "here")].key == "dirty/sample_2"
    for wrong in ("sample_3", 10, -1):
        with pytest.raises(UserError, match=r"--sample(-idx)? "):
            _place(counted, wrong, "here")
