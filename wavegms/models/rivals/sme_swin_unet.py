"""SME-SwinUNet (Wang et al. 2022): Swin-Unet with superpixels and attention on its skips."""

import hashlib
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

from wavegms.models.mask_network import logits_of, mask_network
from wavegms.models.rivals.channel_transformer import ChannelTransformer
from wavegms.models.rivals.swin_unet import SwinUNet

_YELLOW = (1.0, 1.0, 0.0)
# Boundaries of images seen before, a bit a pixel: 26 MB of 224x224.
_MOST_KEPT = 4096
_kept: OrderedDict[bytes, np.ndarray] = OrderedDict()


def superpixel_boundaries(image: np.ndarray) -> np.ndarray:
    """Bool (H, W), True where two of about 100 SLIC superpixels of (H, W, 3) in [0, 1] meet.

    Those of an image are computed once, and again only after 4,096 others. SLIC draws nothing at
    random.
    """
    key = hashlib.sha256(image.tobytes() + repr(image.shape).encode()).digest()
    if key in _kept:
        _kept.move_to_end(key)
    else:
        # here, because only this network needs them
        from skimage.segmentation import find_boundaries, slic

        labels = slic(image, n_segments=100, compactness=10)
        _kept[key] = np.packbits(find_boundaries(labels, mode="outer"))
        if len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    pixels = image.shape[0] * image.shape[1]
    return np.unpackbits(_kept[key], count=pixels).reshape(image.shape[:2]).astype(bool)


@torch.no_grad()
def painted(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] with the boundaries of their superpixels in yellow."""
    if images.is_meta:  # which has shapes only, to count operations
        return images.clone()
    pictures = images.detach().float().cpu().permute(0, 2, 3, 1).contiguous().numpy()
    found = np.stack([superpixel_boundaries(picture) for picture in pictures])
    boundaries = torch.from_numpy(found)[:, None].to(images.device)
    return torch.where(boundaries, images.new_tensor(_YELLOW)[:, None, None], images)


class ExternalAttention(nn.Module):
    """(B, N, C) -> the same, by `slots` learned places of memory (Guo et al. 2021)."""

    def __init__(self, channels: int, slots: int = 8):
        super().__init__()
        self.keys = nn.Linear(channels, slots, bias=False)
        self.values = nn.Linear(slots, channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        shares = self.keys(tokens).softmax(1)
        return self.values(shares / shares.sum(2, keepdim=True))


class SMESwinUNet(SwinUNet):
    """See `SwinUNet`; for one side S. One token stands for the whole of a skip's map.

    The channel transformer's first level is the painted image. Its own result is thrown away, as in
    the official code, so that `UNUSED` parts of it never get a gradient. `supplement` is a
    convolution that the official code has and never calls.
    """

    unexportable = "computes superpixels by scikit-image, which an ONNX file cannot"
    UNUSED = (
        "supplement.",
        "transformer.reconstructions.0.",
        "transformer.norms.0.",
        "transformer.layers.3.mlps.0.",
        "transformer.layers.3.mlp_norms.0.",
        "transformer.layers.3.norms.0.",
        "transformer.layers.3.attention.queries.0.",
        "transformer.layers.3.attention.outputs.0.",
    )

    def __init__(
        self,
        image_size: int = 224,
        dim: int = 96,
        heads: tuple[int, ...] = (3, 6, 12, 24),
        logits: int = 1,
    ):
        super().__init__(image_size, dim, heads, logits)
        channels = [dim // 2 * 2**level for level in range(4)]
        sides = [image_size // (2 * 2**level) for level in range(4)]
        self.superpixels = nn.Conv2d(3, channels[0], 3, stride=2, padding=1)
        self.transformer = ChannelTransformer(channels, sides, sides)
        self.external = nn.ModuleList(ExternalAttention(width) for width in channels[1:])
        self.supplement = nn.Conv2d(logits + 3, logits, 1)

    def skips(self, images: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """What external attention makes of the channel transformer's maps; it is no residual."""
        first = self.superpixels(painted(images))
        _, *mixed = self.transformer([first, *(x.permute(0, 3, 1, 2) for x in maps)])
        return [
            attention(x.flatten(2).transpose(1, 2)).unflatten(1, x.shape[2:])
            for attention, x in zip(self.external, mixed, strict=True)
        ]


@mask_network
def sme_swin_unet(image_size: int, classes: int = 1) -> nn.Module:
    """SME-SwinUNet with one class, 169,790,777 parameters at 224 pixels.

    With the two logits of the official code it has the paper's 169,790,880.
    """
    return SMESwinUNet(image_size, logits=logits_of(classes))


@mask_network
def sme_swin_unet_small(image_size: int, classes: int = 1) -> nn.Module:
    """An eighth of its width."""
    return SMESwinUNet(image_size, 12, (1, 2, 4, 8), logits_of(classes))
