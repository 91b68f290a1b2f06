"""Networks that go from the image to the mask without latents: the baselines of Table 2."""

from collections.abc import Callable
from dataclasses import dataclass

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


@dataclass(frozen=True)
class MaskNetworkSpec:
    """One such network.

    Attributes:
        title: its name in the paper's table.
        build: makes it; it maps (B, 3, H, W) in [0, 1] to logits (B, 1, H, W).
        side_divisor: what H and W must be divisible by.
    """

    title: str
    build: Callable[[], nn.Module]
    side_divisor: int = 8


def _unet() -> nn.Module:
    """MONAI's U-Net, 14,007,118 parameters; the paper's has 14.0 M.

    The paper does not say which U-Net it is. These widths and two residual units a level are those
    near 14 M that stay a doubling U-Net, but for the last.
    """
    # here, because MONAI takes seconds to import and only this network needs it
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=1,
        channels=(48, 96, 192, 384, 736),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm="batch",
    )


# A further baseline is one further line here.
MASK_NETWORKS: dict[str, MaskNetworkSpec] = {
    "unet": MaskNetworkSpec("UNet", _unet, side_divisor=16),
}


class MaskNetwork(ModelMixin, ConfigMixin):
    """A network of `MASK_NETWORKS` as a part that diffusers saves and loads.

    Args:
        architecture: its name there.
    """

    @register_to_config
    def __init__(self, architecture: str):
        super().__init__()
        self.network = MASK_NETWORKS[architecture].build()

    def forward(self, images: Tensor) -> Tensor:
        """Soft masks.

        Args:
            images: (B, 3, H, W) in [0, 1]; the sides divisible by the network's `side_divisor`.

        Returns:
            (B, 1, H, W) in [0, 1].
        """
        return self.network(images).sigmoid()
