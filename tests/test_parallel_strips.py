"""Layers on strips of a picture against the same layers on the whole, in float64: results and gradients."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neuropbr_dist.config import LossConfig, ModelConfig
from neuropbr_dist.kernels import Reach
from neuropbr_dist.materials.relighting import from_above
from neuropbr_dist.models import Discriminator, Generator
from neuropbr_dist.models.conv import ConvChain, FusedConv2d, JoinConv2d
from neuropbr_dist.models.decoder import Up, super_resolution_head
from neuropbr_dist.models.encoder import ResNetEncoder, UNetEncoder
from neuropbr_dist.models.fusion import Attention, ConcatFusion, CrossViewFusion
from neuropbr_dist.models.norm import FrozenBatchNorm2d, FusedGroupNorm, StepBatchNorm2d, norm_factory
from neuropbr_dist.objectives import ReconstructionLoss, feature_matching_loss
from neuropbr_dist.objectives.rendering import square_of
from neuropbr_dist.parallel.strips import operations, share_rows
from tests.support.distributed import run
from tests.support.strips import close, compare_layer, own_rows, picture, summed, whole_of, world_strip
from tests.support.tiny import tiny_model

STRIPS = [2, 3, 4]


def on_strips(count: int, function: Callable[..., None], **arguments: Any) -> None:
    """Call `function` on the ranks that share a picture."""
    run(count, f"{__name__}:{function.__name__}", **arguments)


def height(rows: int) -> int:
    """Of a picture of strips of so many rows."""
    return rows * dist.get_world_size()


# -- convolutions --------------------------------------------------------------------------

CONVOLUTIONS = {  # taps, stride, padding, rows of a strip
    "3x3": (3, 1, 1, 5),
    "3x3 of stride 2": (3, 2, 1, 6),
    "7x7": (7, 1, 3, 5),
    "7x7 on strips as short as its reach": (7, 1, 3, 3),
    "7x7 of stride 2": (7, 2, 3, 6),
    "4x4 of stride 2": (4, 2, 1, 6),
    "4x4": (4, 1, 1, 5),
    "1x1": (1, 1, 0, 1),
    "1x1 of stride 2": (1, 2, 0, 2),
}


def convolve(taps: int, stride: int, padding: int, rows: int) -> None:
    torch.manual_seed(1)
    compare_layer(FusedConv2d(3, 4, taps, stride, padding), [picture(2, 3, height(rows), 8)])


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", STRIPS)
def test_convolutions(count):
    for taps, stride, padding, rows in CONVOLUTIONS.values():
        on_strips(count, convolve, taps=taps, stride=stride, padding=padding, rows=rows)


def convolve_and_activate(stride: int, slope: float | None) -> None:
    torch.manual_seed(1)
    conv = FusedConv2d(3, 4, 3, stride, 1)
    x, residual = picture(2, 3, height(4), 8), picture(2, 4, height(4 // stride), 8 // stride, seed=1)
    compare_layer(conv, [x, residual], lambda m, x, r: m(x, residual=r, slope=slope))
    conv.zero_grad()
    scale, shift = torch.rand(4).double(), torch.rand(4).double()
    compare_layer(conv, [x], lambda m, x: m(x, scale, shift, None, slope))


@pytest.mark.multiprocess
def test_what_follows_a_convolution_is_done_again_with_it():
    for stride in (1, 2):
        for slope in (None, 0.0, 0.2):
            on_strips(3, convolve_and_activate, stride=stride, slope=slope)


@pytest.mark.parametrize(
    ("taps", "stride", "padding", "rows", "fits"),
    [
        (3, 1, 1, 2, True), (3, 2, 1, 4, True), (7, 2, 3, 8, True), (4, 2, 1, 4, True),
        (4, 1, 1, 9, False),  # a strip gains a row by its neighbour's
        (3, 2, 1, 5, False),  # the next strip would begin between two strides
        (7, 1, 3, 5, False),  # an output row sees both neighbours
    ],
)  # fmt: skip
def test_where_rows_can_be_exchanged_beside_a_convolution(taps, stride, padding, rows, fits):
    assert Reach(taps, stride, padding, rows).fits == fits


def convolve_two() -> None:
    torch.manual_seed(1)
    compare_layer(
        JoinConv2d(5, 4, 3, padding=1), [picture(1, 2, height(3), 4), picture(1, 3, height(3), 4, seed=1)]
    )


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", STRIPS)
def test_a_convolution_of_two_inputs(count):
    on_strips(count, convolve_two)


def ask_too_much() -> None:
    strip = world_strip()
    with pytest.raises(ValueError, match="a strip of 2 rows, of which a neighbour needs 3"):
        strip.with_halo(picture(1, 1, 2, 2), 3, 3)


@pytest.mark.multiprocess
def test_a_reach_beyond_the_neighbour_is_refused():
    on_strips(2, ask_too_much)


# -- norms ---------------------------------------------------------------------------------


def normalise(kind: str, rows: int) -> None:
    torch.manual_seed(1)
    norm = norm_factory(kind)(32)
    nn.init.normal_(norm.weight)
    x = picture(3, 32, height(rows), 4) + torch.arange(height(rows))[:, None]
    compare_layer(norm, [x], lambda m, x: m(x, 0.2, x.flip(1)))


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", STRIPS)
def test_norms(count):
    for kind in ("group", "batch", "frozen_batch"):
        on_strips(count, normalise, kind=kind, rows=3)


def normalise_uneven() -> None:
    """After a 4x4 convolution of stride 1 the last strip has a row less."""
    for kind in (FusedGroupNorm(2, 4), StepBatchNorm2d(4), FrozenBatchNorm2d(4)):
        torch.manual_seed(1)
        chain = ConvChain(FusedConv2d(3, 4, 4, 1, 1, bias=False), kind, nn.SiLU())
        compare_layer(chain, [picture(2, 3, height(4), 6)])


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", STRIPS)
def test_norms_where_the_last_strip_is_shorter(count):
    on_strips(count, normalise_uneven)


def note_statistics() -> None:
    plain, shared = StepBatchNorm2d(3), StepBatchNorm2d(3)
    share_rows(shared, world_strip())
    x = picture(2, 3, height(3), 4, dtype=torch.float32)
    plain(x), shared(own_rows(x, world_strip()))
    for ours, theirs in zip(shared._noted[0], plain._noted[0], strict=True):
        close(ours, theirs, 1e-6)
    share_rows(shared, None)
    assert type(shared) is StepBatchNorm2d and torch.equal(shared(x), plain(x))


@pytest.mark.multiprocess
def test_batch_statistics_are_noted_of_whole_pictures():
    on_strips(3, note_statistics)


# -- resolution ----------------------------------------------------------------------------


def change_resolution() -> None:
    torch.manual_seed(1)
    compare_layer(Up(FusedConv2d(4, 3, 3, padding=1)), [picture(2, 4, height(3), 5)])
    compare_layer(Up(nn.Identity()), [picture(1, 4, height(1), 5)])
    compare_layer(super_resolution_head(norm_factory("group")), [picture(1, 64, height(3), 4)])
    compare_layer(nn.MaxPool2d(2), [picture(1, 2, height(6), 4)])


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", STRIPS)
def test_upsampling_pixel_shuffle_and_pooling(count):
    on_strips(count, change_resolution)


# -- encoders ------------------------------------------------------------------------------


def encode(kind: str, stride: int, merge: str, masked: bool) -> None:
    """All skips and the latent; maximum and mean over views, of which some pixels show nothing, one the lower half alone,
    and one nowhere anything."""
    torch.manual_seed(1)
    channels = 7 if masked else 3
    if kind == "unet":
        net: nn.Module = UNetEncoder([4, 8, 16], "group", channels, merge)
        rows = 12
    else:
        net = ResNetEncoder("resnet18", stride, "frozen_batch", channels=channels, skip_merge=merge)
        rows = 16 * stride
    x = picture(3, channels, height(rows), 32)
    if masked:
        x[:, 3] = (x[:, 3] > -0.5).double()
        x[1, 3, : x.shape[2] // 2], x[2, 3] = 0, 0
    compare_layer(net, [x], lambda m, x: flat(m(x)), bound=1e-10)


def flat(found: tuple[Tensor, list[Tensor]]) -> tuple[Tensor, ...]:
    return found[0], *found[1]


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.drill)])
def test_encoders(count):
    on_strips(count, encode, kind="unet", stride=1, merge="mean", masked=False)
    on_strips(count, encode, kind="unet", stride=1, merge="max_mean", masked=True)
    on_strips(count, encode, kind="resnet", stride=1, merge="mean", masked=False)
    on_strips(count, encode, kind="resnet", stride=2, merge="max_mean_var", masked=True)


# -- attention -----------------------------------------------------------------------------


def attend() -> None:
    torch.manual_seed(1)
    count = dist.get_world_size()
    attention = Attention(4 * 2 * count, 2 * count, 0.0, 0.0)

    def call(m: nn.Module, x: Tensor) -> Tensor:
        """Tokens of one view, by rows."""
        return m(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])

    compare_layer(attention, [picture(2, 4 * 2 * count, height(3), 2)], call)


def fuse(embedding: str) -> None:
    torch.manual_seed(1)
    count = dist.get_world_size()
    fusion = CrossViewFusion(4 * count, 3, count, 2, 2.0, embedding=embedding)
    compare_layer(fusion, [picture(6, 4 * count, height(3), 2)])


def fuse_plainly() -> None:
    compare_layer(ConcatFusion(4, 3), [picture(6, 4, height(3), 2)])


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", STRIPS)
def test_attention_and_fusion(count):
    on_strips(count, attend)
    for embedding in ("none", "position", "view"):
        on_strips(count, fuse, embedding=embedding)
    on_strips(count, fuse_plainly)


# -- whole networks ------------------------------------------------------------------------


def small_model(heads: int) -> ModelConfig:
    return tiny_model(
        align="none", transformer_dim=8 * heads, transformer_num_heads=heads, transformer_mlp_ratio=2,
        discriminator_ndf=8, norm="group", encoder_norm="group",
    )  # fmt: skip


def generate() -> None:
    torch.manual_seed(1)
    net = Generator(small_model(dist.get_world_size()))
    views = picture(3, 3, height(4), 8)

    def call(m: nn.Module, x: Tensor) -> Tensor:
        return m(x.unflatten(0, (1, 3)))

    compare_layer(net, [views], call, bound=1e-10)


def judge() -> None:
    torch.manual_seed(1)
    net = Discriminator(small_model(1), with_features=True)
    compare_layer(net, [picture(2, 8, height(12), 16)], bound=1e-10)


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", STRIPS)
def test_generator_and_discriminator(count):
    on_strips(count, generate)
    on_strips(count, judge)


def generate_recomputed() -> None:
    """Collectives in recomputation, from within backward."""
    torch.manual_seed(1)
    first = FusedConv2d(3, 4, 3, padding=1, bias=False)
    chain = ConvChain(first, FusedGroupNorm(2, 4), nn.SiLU(), FusedConv2d(4, 4, 3, padding=1))
    compare_layer(
        chain,
        [picture(1, 3, height(4), 6)],
        lambda m, x: checkpoint(m, checkpoint(lambda y: y + 1, x, use_reentrant=False), use_reentrant=False),
    )


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", STRIPS)
def test_recomputation(count):
    on_strips(count, generate_recomputed)


# -- losses --------------------------------------------------------------------------------


def lose(side: int, render: float) -> None:
    """Parts of the loss add up to that of the whole, as do its terms and the gradient."""
    strip, batch = world_strip(), 2
    loss = ReconstructionLoss(LossConfig(w_render=render))
    rows = side // dist.get_world_size()
    pred, target = (picture(batch, 8, rows * dist.get_world_size(), side, seed=i).sigmoid() for i in (0, 1))
    lamps = from_above(batch)
    lamps = lamps._replace(
        lamps=lamps.lamps.double(), eyes=lamps.eyes.double(), corners=torch.tensor([(0.3, 0.9), (0.99, 0.0)])
    )
    whole = pred.clone().requires_grad_()
    wanted, terms = loss(whole, target, lamps)
    own = own_rows(pred, strip)
    found, parts = loss(own, own_rows(target, strip).detach(), lamps, strip)
    wanted.sum().backward(), found.sum().backward()
    close(summed(found), wanted, 1e-12)
    assert parts.keys() == terms.keys()
    for name, term in terms.items():
        close(summed(parts[name]), term, 1e-12)
    close(whole_of(own.grad), whole.grad, 1e-11)


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", STRIPS)
def test_losses(count):
    on_strips(count, lose, side=36, render=0.5)


def match() -> None:
    """Of two blocks of unequally many rows, the second's unequally many in the strips as well."""
    strip, last = world_strip(), dist.get_world_size() - 1
    shapes = [(2, 3, height(4), 5), (2, 4, height(2) - 1, 3)]
    fake, true = ([picture(*shape, seed=10 * i + n) for n, shape in enumerate(shapes)] for i in (0, 1))
    fake = [feature.requires_grad_() for feature in fake]
    rows = [slice(4 * strip.index, 4 * strip.index + 4), slice(2 * strip.index, 2 * strip.index + 2)]
    assert len(range(*rows[1].indices(shapes[1][2]))) == (1 if strip.index == last else 2)
    ours, theirs = ([f[:, :, r].detach() for f, r in zip(whole, rows, strict=True)] for whole in (fake, true))
    ours = [own.requires_grad_() for own in ours]
    wanted, found = feature_matching_loss(fake, true), feature_matching_loss(ours, theirs, strip)
    close(summed(found), wanted, 1e-12)
    wanted.sum().backward(), found.sum().backward()
    for own, whole in zip(ours, fake, strict=True):
        close(whole_of(own.grad), whole.grad, 1e-12)


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", STRIPS)
def test_feature_matching(count):
    on_strips(count, match)


def cut_squares() -> None:
    strip = world_strip()
    maps = picture(3, 8, 300, 260)
    corners = torch.tensor([(0.0, 0.0), (0.5, 0.5), (0.999, 0.999)])
    close(square_of(own_rows(maps, strip), corners, strip), square_of(maps, corners), 0.0)


@pytest.mark.multiprocess
@pytest.mark.parametrize("count", STRIPS)
def test_squares_of_the_rendering_loss(count):
    on_strips(count, cut_squares)


# -- operations ----------------------------------------------------------------------------


def keep_contract() -> None:
    """What the compiler is told of shapes and layouts is what comes."""
    name = world_strip().name
    x = own_rows(picture(2, 3, height(4), 5), world_strip())
    torch.library.opcheck(operations.with_halo, (x, 2, 1, "repeat", name))
    torch.library.opcheck(operations.with_halo, (x.detach().contiguous(), 1, 1, "zeros", name))
    torch.library.opcheck(operations.gathered, (x, dist.get_world_size(), name))
    tokens = picture(2, 3, 3, 2 * dist.get_world_size(), 4).requires_grad_()
    torch.library.opcheck(operations.to_heads, (tokens, dist.get_world_size(), name))
    for views in (1, 3):  # of one part the places may change without a copy
        shared = picture(4, views * dist.get_world_size(), 1, 1, 4).requires_grad_()
        torch.library.opcheck(operations.to_rows, (shared, dist.get_world_size(), name))


@pytest.mark.multiprocess
def test_operations_keep_their_contract_with_the_compiler():
    on_strips(2, keep_contract)


def hold_low_precision() -> None:
    strip = world_strip()
    whole = picture(1, 3, height(3), 4, dtype=torch.bfloat16)
    wide = strip.with_halo(own_rows(whole, strip).detach(), 1, 1)
    padded = F.pad(whole, (0, 0, 1, 1))
    first, last = strip.rows(whole.shape[2])
    assert torch.equal(wide, padded[:, :, first : last + 2])
    assert wide.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.multiprocess
def test_rows_keep_dtype_and_layout():
    on_strips(2, hold_low_precision)


def copy_a_module() -> None:
    net = FusedConv2d(1, 1, 3, padding=1)
    share_rows(net, world_strip())
    twin = deepcopy(net)
    assert twin.strip.name == net.strip.name
    share_rows(twin, None)
    assert twin.strip is None and net.strip is not None


@pytest.mark.multiprocess
def test_a_module_that_knows_its_strip_can_be_copied():
    on_strips(2, copy_a_module)
