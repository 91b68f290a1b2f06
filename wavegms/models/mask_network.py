"""Networks that go from the image to the mask without latents: the baselines of Table 2."""

import inspect
from collections.abc import Callable

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from wavegms.errors import InputError

MASK_NETWORKS: dict[str, Callable[..., nn.Module]] = {}


def mask_network(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Registers a network, under its function's name, for an entry of `VARIANTS`.

    It maps (B, 3, H, W) in [0, 1] to logits (B, 1, H, W). One whose weights depend on the side of
    its images takes that as `image_size`, one that knows several classes their number as `classes`:
    then it has as many logits and one of the background, the first. In training it may give a list
    of logits: the mask's, then those of auxiliary masks, which only a loss of its own looks at.
    """
    MASK_NETWORKS[build.__name__] = build
    return build


@mask_network
def unet(classes: int = 1) -> nn.Module:
    """MONAI's U-Net, 14,007,118 parameters of one class; the paper's has 14.0 M.

    The paper does not say which U-Net it is. These widths and two residual units a level are those
    near 14 M that stay a doubling U-Net, but for the last.
    """
    # here, because MONAI takes seconds to import and only this network needs it
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=logits_of(classes),
        channels=(48, 96, 192, 384, 736),
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm="batch",
    )


def logits_of(classes: int) -> int:
    """How many logits a pixel has: of one class its own, of several the background's as well."""
    return 1 if classes == 1 else classes + 1


def builder_of(architecture: str) -> Callable[..., nn.Module]:
    """The function of that name among `MASK_NETWORKS`."""
    # here, as its files import this one
    from wavegms.models import rivals  # noqa: F401

    return MASK_NETWORKS[architecture]


class MaskNetwork(ModelMixin, ConfigMixin):
    """A network of `MASK_NETWORKS`, by its name there, as a part that diffusers saves and loads."""

    @register_to_config
    def __init__(self, architecture: str):
        super().__init__()
        self.network = builder_of(architecture)()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], sides divisible by `side_divisor` -> (B, 1, H, W) in [0, 1]."""
        logits = self.network(images)
        return self._probabilities(logits[0] if isinstance(logits, list) else logits)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class ClassesMaskNetwork(MaskNetwork):
    """One of several classes 1 to K, of which a pixel has one or none."""

    @register_to_config
    def __init__(self, architecture: str, classes: int):
        ModelMixin.__init__(self)
        self.network = builder_of(architecture)(classes=classes)

    def _probabilities(self, logits: Tensor) -> Tensor:
        """(B, K + 1, H, W) -> (B, K, H, W), whose sum is at most 1."""
        return logits.softmax(dim=1)[:, 1:]


class SizedMaskNetwork(MaskNetwork):
    """One whose weights depend on the side of its images, and which takes no other."""

    @register_to_config
    def __init__(self, architecture: str, image_size: int):
        ModelMixin.__init__(self)
        self.network = builder_of(architecture)(image_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] -> (B, 1, S, S) in [0, 1]."""
        side = self.config.image_size
        if images.shape[2:] != (side, side):
            raise InputError(
                f"{self.config.architecture} was built for {side}x{side} pixels, not for "
                f"{images.shape[3]}x{images.shape[2]}: train it anew at that image_size"
            )
        return super().forward(images)


def build_mask_network(architecture: str, image_size: int, classes: int = 1) -> MaskNetwork:
    """A network of `MASK_NETWORKS`, for images of a side in pixels.

    Of several classes only where it knows them, see `wavegms.variants.require_classes`.
    """
    if classes > 1:
        return ClassesMaskNetwork(architecture, classes)
    if "image_size" in inspect.signature(builder_of(architecture)).parameters:
        return SizedMaskNetwork(architecture, image_size)
    return MaskNetwork(architecture)
