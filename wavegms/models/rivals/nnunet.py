"""nnU-Net (Isensee et al., Nature Methods 2021): MONAI's network, planned for 224x224."""

from torch import Tensor, nn

from wavegms.models.mask_network import MaskNetwork, mask_network
from wavegms.recipes import planned_widths


class ZScored(nn.Module):
    """A network of classes, background first, that sees each channel at mean 0 and spread 1.

    Of two its logit is their difference, whose sigmoid is the softmax's share of the foreground.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        # its nested copy of the same blocks, which safetensors would have to store twice
        del network.skip_layers
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, 1, H, W); of more than two classes all, (B, K + 1, H, W)."""
        return _given(self.logits(self.scored(images)))

    @staticmethod
    def scored(images: Tensor) -> Tensor:
        """Each channel of each image at mean 0 and spread 1."""
        mean = images.mean((2, 3), keepdim=True)
        return (images - mean) / images.std((2, 3), keepdim=True, correction=0).clamp_min(1e-8)

    def logits(self, x: Tensor) -> Tensor:
        """Values as they are (B, 3, H, W) -> logits (B, K + 1, H, W): nnU-Net's own network."""
        return self.network.output_block(self.maps(x)[0])

    def maps(self, x: Tensor) -> list[Tensor]:
        """Those of the decoder, the largest first, each of half the sides of the one before."""
        skips, maps = [], []
        for block in (self.network.input_block, *self.network.downsamples):
            x = block(x)
            skips.append(x)
        x = self.network.bottleneck(x)
        for block in self.network.upsamples:
            x = block(x, skips.pop())
            maps.append(x)
        return maps[::-1]


class DeeplySupervised(nn.Module):
    """nnU-Net while it learns: a mask from each map of the decoder but the smallest.

    The heads of the smaller ones are no part of the network that is kept.
    """

    def __init__(self, model: MaskNetwork):
        super().__init__()
        self.model = model
        network = model.network.network
        self.heads = nn.ModuleList(
            nn.Conv2d(width, network.out_channels, 1) for width in network.filters[1:-2]
        )
        for head in self.heads:
            nn.init.kaiming_normal_(head.weight, a=0.01)
            nn.init.zeros_(head.bias)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> logits as the network's, of sides H and W, H/2 and W/2 and so on."""
        network = self.model.network
        largest, *others = network.maps(network.scored(images))
        logits = [network.network.output_block(largest)]
        # the smallest map is left over: its weight is 0
        logits += [head(x) for head, x in zip(self.heads, others, strict=False)]
        return [_given(one) for one in logits]


def _given(logits: Tensor) -> Tensor:
    if logits.shape[1] > 2:
        return logits
    background, foreground = logits.split(1, dim=1)
    return foreground - background


def _build(classes: int, *widths: int) -> nn.Module:
    # here, because MONAI takes seconds to import
    from monai.networks.nets import DynUNet

    class Planned(DynUNet):
        @staticmethod
        def initialize_weights(module: nn.Module) -> None:
            """As MONAI does, but in place: while weights are loaded, these functions give None."""
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    halvings = len(widths) - 1
    network = Planned(
        spatial_dims=2,
        in_channels=3,
        out_channels=classes + 1,
        kernel_size=[3] * len(widths),
        strides=[1] + [2] * halvings,
        upsample_kernel_size=[2] * halvings,
        filters=widths,
        norm_name=("INSTANCE", {"affine": True}),
        trans_bias=True,
    )
    return ZScored(network)


@mask_network
def nnunet(classes: int = 1) -> nn.Module:
    """20,612,738 parameters; the paper's has 20.6 M.

    nnU-Net's own class has 20,619,658: biases, which its norms cancel, and heads that only train.
    """
    return _build(classes, 32, 64, 128, 256, 512, 512)


@mask_network
def nnunet_planned(image_size: int, classes: int = 1) -> nn.Module:
    """As deep as nnU-Net's rule makes it for this side; at 224 pixels the same."""
    return _build(classes, *planned_widths(image_size))


@mask_network
def nnunet_small(classes: int = 1) -> nn.Module:
    """Three stages instead of six."""
    return _build(classes, 8, 16, 32)
