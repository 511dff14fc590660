"""Cross-view fusion: a vision transformer over the tokens of all three views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuropbr_dist import kernels
from neuropbr_dist.strip import Strip


class Attention(nn.Module):
    """Multi-head self-attention.

    Of a strip's tokens it takes those of all strips for a share of the heads; the number of strips divides theirs.
    """

    strip: Strip | None = None
    """Way to the other strips where the tokens are those of a strip of a picture's rows; None: they are all."""

    def __init__(self, dim: int, heads: int, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.heads, self.attn_drop = heads, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, c // self.heads)
        drop = self.attn_drop if self.training else 0.0
        if self.strip is None:
            out = kernels.attention(qkv, drop)
        else:
            shared = kernels.attention(self.strip.to_heads(qkv), drop)
            out = self.strip.to_rows(shared[:, :, None])
        return self.proj_drop(self.proj(out.reshape(b, n, c)))


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole samples (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep


class TransformerBlock(nn.Module):
    """Pre-norm ViT block (Dosovitskiy et al. 2021). Tokens (B, N, C) -> (B, N, C)."""

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, attn_drop: float, proj_drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, attn_drop, proj_drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), proj_drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ViewMerge(nn.Module):
    """Tokens of all views to one token a place: concatenate channels, project, norm."""

    def __init__(self, dim: int, views: int) -> None:
        super().__init__()
        self.views = views
        self.project = nn.Linear(dim * views, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, views * N, C) -> (B, N, C)"""
        per_view = tokens.unflatten(1, (self.views, -1))
        return self.norm(self.project(torch.cat(per_view.unbind(1), dim=-1)))


def place_embedding(height: int, width: int, dim: int, like: Tensor, first_row: int = 0) -> Tensor:
    """Return sines and cosines of a token's column and row (Vaswani et al. 2017, in two dimensions):
    (height * width, dim).

    A quarter of the channels each, zeros where four doesn't divide `dim`. Any picture size goes through.
    """
    quarter = dim // 4
    rates = 10000.0 ** (-torch.arange(quarter, device=like.device) / max(quarter, 1))
    row, column = (
        torch.arange(first, first + n, device=like.device)[:, None] * rates
        for first, n in ((first_row, height), (0, width))
    )
    row, column = row[:, None].expand(-1, width, -1), column[None].expand(height, -1, -1)
    place = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=-1).flatten(0, 1)
    return F.pad(place, (0, dim - 4 * quarter)).to(like.dtype)


class CrossViewFusion(nn.Module):
    """Joint self-attention over all views' tokens, then one latent.

    Places and views are told apart by the encoder's features, unless `embedding` says them.

    Args:
        embedding: `none`; `position`, fixed sines, so that any picture size goes through; or `view`, learned.
    """

    strip: Strip | None = None
    """Way to the other strips where the input is a strip of a picture's rows, as an `Attention`'s."""

    def __init__(
        self,
        dim: int,
        views: int,
        heads: int,
        depth: int,
        mlp_ratio: float,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path_rate: float = 0.0,
        embedding: str = "none",
    ) -> None:
        super().__init__()
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, heads, mlp_ratio, attn_drop, proj_drop, rate) for rate in rates
        )
        self.merge = ViewMerge(dim, views)
        self.views, self.embedding = views, embedding
        if embedding == "view":
            self.view_embedding = nn.Parameter(0.02 * torch.randn(views, dim))

    def segments(self) -> dict[str, nn.Module]:
        return {f"blocks.{i}": block for i, block in enumerate(self.blocks)} | {"merge": self.merge}

    def forward(self, latents: Tensor) -> Tensor:
        """(B * views, C, h, w), views of a sample adjacent -> (B, C, h, w)"""
        n, c, h, w = latents.shape
        x = latents.flatten(2).transpose(1, 2)
        if self.embedding == "position":
            x = x + place_embedding(h, w, c, x, 0 if self.strip is None else self.strip.index * h)
        elif self.embedding == "view":
            x = x + self.view_embedding.repeat(n // self.views, 1)[:, None].to(x.dtype)
        x = x.reshape(n // self.views, self.views * h * w, c)
        for block in self.blocks:
            x = block(x)
        return self.merge(x).transpose(1, 2).unflatten(2, (h, w))


class ConcatFusion(nn.Module):
    """`use_transformer = False`: concatenate the views' latents and project."""

    def __init__(self, dim: int, views: int) -> None:
        super().__init__()
        self.views = views
        self.project = nn.Conv2d(dim * views, dim, 1)

    def segments(self) -> dict[str, nn.Module]:
        return {"project": self.project}

    def forward(self, latents: Tensor) -> Tensor:
        """(B * views, C, h, w), views of a sample adjacent -> (B, C, h, w)"""
        per_view = latents.unflatten(0, (-1, self.views))
        return self.project(per_view.flatten(1, 2))
