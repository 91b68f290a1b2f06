"""A 3-D U-Net, MONAI's, on windows of consecutive slices: what Wave-GMS in 3-D is measured by."""

import torch
from torch import Tensor, nn

from wavegms.models.mask_network import logits_of, mask_network
from wavegms.models.windows import as_slices, as_window
from wavegms.variants import WINDOW


class Windowed(nn.Module):
    """A network over (B, 3, D, H, W) for slices that come and go as images do.

    Fewer slices than a window are filled up by the last of them.
    """

    def __init__(self, network: nn.Module, depth: int):
        super().__init__()
        self.network, self.depth = network, depth

    def forward(self, slices: Tensor) -> Tensor:
        """Slices (B * D, 3, H, W) in [0, 1] -> logits (B * D, 1, H, W), or as `logits_of` says."""
        missing = max(0, self.depth - len(slices))
        filled = torch.cat([slices, slices[-1:].expand(missing, -1, -1, -1)])
        return as_slices(self.network(as_window(filled, self.depth)))[: len(slices)]


@mask_network
def unet_3d(classes: int = 1) -> nn.Module:
    """4,807,262 parameters of one class, the widths of MONAI's example on the spleen.

    It halves the depth once less than the sides, as slices are thicker than pixels. It normalises
    each window by itself, since a batch holds one or two.
    """
    # here, because MONAI takes seconds to import
    from monai.networks.nets import UNet

    network = UNet(
        spatial_dims=3,
        in_channels=3,
        out_channels=logits_of(classes),
        channels=(16, 32, 64, 128, 256),
        strides=((1, 2, 2), 2, 2, 2),
        num_res_units=2,
        norm="instance",
    )
    return Windowed(network, WINDOW)
