"""Three pictures of a material in, its maps out: size, precision, tiles, and how good they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from neuropbr_dist.errors import UserError
from neuropbr_dist.inference.generator import InferenceGenerator
from neuropbr_dist.inference.tiles import MIN_OVERLAP, check_tiling, predict_tiles
from neuropbr_dist.inference.turns import mean_of_turns, orientations
from neuropbr_dist.models import size_multiple
from neuropbr_dist.strip import Strip
from neuropbr_dist.training.sharing import check_sharing

Precision = Literal["auto", "bf16", "fp32"]


def resolve_precision(precision: Precision, device: torch.device) -> Literal["bf16", "fp32"]:
    """Return the precision that is meant; `auto` is bf16 on GPUs that have it, else fp32."""
    if precision != "auto":
        return precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def check_multiple(side: int, multiple: int, where: str) -> None:
    """Raise a UserError, naming the nearest sizes, unless `side` is a multiple of the encoder's stride."""
    below, above = side // multiple * multiple, -(-side // multiple) * multiple
    if below != above:
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"{where}: {side} px a side, but this model takes multiples of {multiple} px; "
            f"nearest: {nearest} (--size resizes)"
        )


@torch.no_grad()
def predict(
    model: InferenceGenerator,
    views: Tensor,
    cameras: Tensor | None = None,
    *,
    precision: Precision = "auto",
    tile: int | None = None,
    overlap: int | None = None,
    strip: Strip | None = None,
    turns: int = 1,
) -> Tensor:
    """Return maps of one material, or of several in one forward pass, on the model's device.

    Args:
        views: (3, 3, S, S) or (B, 3, 3, S, S) uint8 RGB, on any device.
        cameras: (3, 14) or (B, 3, 14), on the host, for a model that rectifies views (`InferenceGenerator.prepare`).
        precision: of the forward pass; `auto`: bf16 on GPUs that have it.
        tile: side of the tiles to predict and blend, for pictures above memory; what that changes
            stands in `tiles`. None, or not below S: the whole picture at once.
        overlap: least number of pixels that neighbouring tiles share. None: a quarter of `tile`.
        strip: this rank's of pictures that several share, in whose network layers know of it
            (`parallel.strips.share_rows`); all get the whole maps. Not with `tile`. None: it has whole ones.
        turns: orientations to predict it in, one after another, and to take the mean of (`turns`).

    Returns:
        (8, S, S) or (B, 8, S, S) float32 on the CPU: albedo, roughness, metallic in [0, 1], unit normals.

    Raises:
        UserError: S is no multiple of the encoder's stride, impossible tiles, too little GPU memory, pictures
            that can't be shared so, or orientations that the network doesn't know.
    """
    device, side = next(model.parameters()).device, views.shape[-1]
    multiple = size_multiple(model.config.model)
    bf16 = resolve_precision(precision, device) == "bf16"

    def forward(part: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            maps: Tensor = model(part.reshape(-1, *part.shape[-4:]).to(device))
        return maps.reshape(*part.shape[:-4], *maps.shape[-3:])

    def predicted(views: Tensor, cameras: Tensor | None) -> Tensor:
        def prepared(rows: tuple[int, int] | None = None) -> Tensor:
            pictures = views if views.ndim == 5 else views[None]
            batch_cameras = cameras if cameras is None or cameras.ndim == 3 else cameras[None]
            ready = model.prepare(pictures.to(device), batch_cameras, rows)
            return ready if views.ndim == 5 else ready[0]

        if strip is not None:
            maps = forward(prepared(strip.rows(side))).float().cpu()
            return strip.whole(maps.reshape(-1, *maps.shape[-3:])).reshape(*maps.shape[:-2], side, side)
        if tile is None or overlap is None or tile >= side:
            return forward(prepared()).float().cpu()
        # In bands, so that the device never holds more of the picture than tiles need.
        bands = [prepared((top, min(top + tile, side))).cpu() for top in range(0, side, tile)]
        return predict_tiles(forward, torch.cat(bands, dim=-2), tile, overlap, multiple)

    check_multiple(side, multiple, "views")
    if strip is not None:
        check_sharing(replace(model.config.model, use_gan=False), strip.count, strip.count, side)
    if tile is not None:
        overlap = max(tile // 4, MIN_OVERLAP) if overlap is None else overlap
        check_tiling(tile, overlap, multiple)
    chosen = orientations(model.config, turns)
    try:
        return mean_of_turns(predicted, views, cameras, chosen)
    except torch.OutOfMemoryError as error:
        size = side if tile is None else min(tile, side)
        remedy = "a smaller --batch-size" if views.shape[:-4].numel() > 1 else "a smaller --tile"
        if strip is not None:
            remedy = "more --sample-ranks"
        raise UserError(f"{size} px a side don't fit into the memory of {device}; use {remedy}") from error
