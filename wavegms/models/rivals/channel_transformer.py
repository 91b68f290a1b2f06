"""The channel transformer of UCTransNet (Wang et al. 2022), which SME-SwinUNet has as well.

The maps of four levels become tokens of as many places each, and the channels of a level attend to
the channels of all.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_HEADS, _LAYERS, _RATIO, _DROPOUT, _EPS = 4, 4, 4, 0.1, 1e-6


class Embedding(nn.Module):
    """(B, C, H, W) -> tokens (B, N, C), one of `patch` x `patch` pixels."""

    def __init__(self, channels: int, side: int, patch: int):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2, channels))
        self.convolution = nn.Conv2d(channels, channels, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        tokens = self.convolution(x).flatten(2).transpose(1, 2) + self.positions
        return functional.dropout(tokens, _DROPOUT, self.training)


class ChannelAttention(nn.Module):
    """Channels of each level ask, channels of all levels together answer.

    A head is a full matrix and the heads are averaged, where others split the channels.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        heads = lambda width: nn.ModuleList(  # noqa: E731
            nn.Linear(width, width, bias=False) for _ in range(_HEADS)
        )
        self.queries = nn.ModuleList(heads(width) for width in channels)
        self.keys, self.values = heads(sum(channels)), heads(sum(channels))
        self.outputs = nn.ModuleList(nn.Linear(width, width, bias=False) for width in channels)

    def forward(self, levels: Sequence[Tensor], together: Tensor) -> list[Tensor]:
        """Tokens (B, N, C) of each level and (B, N, K) of all -> (B, N, C) of each."""
        keys, values = (
            torch.stack([head(together) for head in heads], 1) for heads in (self.keys, self.values)
        )
        found = []
        for level, queries, output in zip(levels, self.queries, self.outputs, strict=True):
            asked = torch.stack([head(level) for head in queries], 1)
            scores = asked.transpose(2, 3) @ keys / math.sqrt(keys.shape[-1])
            shares = functional.instance_norm(scores).softmax(-1)
            shares = functional.dropout(shares, _DROPOUT, self.training)
            context = (shares @ values.transpose(2, 3)).mean(1).transpose(1, 2)
            found.append(functional.dropout(output(context), _DROPOUT, self.training))
        return found


class Layer(nn.Module):
    """Channel attention, then a perceptron for each level, both beside the identity."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.norms = norms_of(channels)
        self.norm_together = nn.LayerNorm(sum(channels), eps=_EPS)
        self.attention = ChannelAttention(channels)
        self.mlp_norms = norms_of(channels)
        self.mlps = nn.ModuleList(_mlp(width) for width in channels)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Tokens (B, N, C) of each level -> the same."""
        # of all levels as they are, not as each is normalised
        together = self.norm_together(torch.cat(list(levels), -1))
        normalised = [norm(x) for norm, x in zip(self.norms, levels, strict=True)]
        found = self.attention(normalised, together)
        levels = [x + more for x, more in zip(levels, found, strict=True)]
        parts = zip(levels, self.mlp_norms, self.mlps, strict=True)
        return [x + mlp(norm(x)) for x, norm, mlp in parts]


class Reconstruction(nn.Module):
    """Tokens (B, N, C) -> (B, C, H, W): each token fills its patch, then a unit of 1 x 1."""

    def __init__(self, channels: int, patch: int):
        super().__init__()
        self.patch = patch
        self.convolution = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        side = math.isqrt(tokens.shape[1])
        x = tokens.transpose(1, 2).unflatten(2, (side, side))
        x = functional.interpolate(x, scale_factor=self.patch)
        return functional.relu(self.norm(self.convolution(x)))


class ChannelTransformer(nn.Module):
    """Maps (B, C, S, S) of four levels -> as many of the same shapes.

    `sides` are those of the maps, `patches` those of a token on each: as many tokens on every map.
    """

    def __init__(self, channels: Sequence[int], sides: Sequence[int], patches: Sequence[int]):
        super().__init__()
        sizes = list(zip(channels, sides, patches, strict=True))
        self.embeddings = nn.ModuleList(Embedding(*size) for size in sizes)
        self.layers = nn.Sequential(*(Layer(channels) for _ in range(_LAYERS)))
        self.norms = norms_of(channels)
        self.reconstructions = nn.ModuleList(
            Reconstruction(width, patch) for width, _, patch in sizes
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """See the class."""
        levels = self.layers([embed(x) for embed, x in zip(self.embeddings, maps, strict=True)])
        parts = zip(maps, levels, self.norms, self.reconstructions, strict=True)
        return [x + reconstruct(norm(level)) for x, level, norm, reconstruct in parts]


def norms_of(channels: Sequence[int]) -> nn.ModuleList:
    """A layer normalisation for each level."""
    return nn.ModuleList(nn.LayerNorm(width, eps=_EPS) for width in channels)


def _mlp(width: int) -> nn.Sequential:
    layers = nn.Linear(width, _RATIO * width), nn.GELU(), nn.Linear(_RATIO * width, width)
    for layer in layers[::2]:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.normal_(layer.bias, std=1e-6)
    return nn.Sequential(*layers)
