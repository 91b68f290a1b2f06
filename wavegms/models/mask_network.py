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

    It maps (B, 3, H, W) in [0, 1] to logits, as many as `logits_of(classes)`; their number is its
    argument `classes`. One whose weights depend on the side of its images takes that as
    `image_size`. In training it may give a list of logits: the mask's, then those of auxiliary
    masks, which only a loss of its own looks at.
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
    """How many logits a pixel has: of one class its own, of several the background's first."""
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

    @property
    def side(self) -> int | None:
        """The one side in pixels that its weights are for; None if they do not depend on it."""
        return self.config.get("image_size")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], sides as `VariantSpec` says -> (B, K, H, W) in [0, 1].

        Of several classes a pixel has one or none, and the sum over them is at most 1.
        """
        if self.side and images.shape[2:] != (self.side, self.side):
            raise InputError(
                f"{self.config.architecture} was built for {self.side}x{self.side} pixels, not for "
                f"{images.shape[3]}x{images.shape[2]}: train it anew at that image_size"
            )
        logits = self.network(images)
        logits = logits[0] if isinstance(logits, list) else logits
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)[:, 1:]


class SizedMaskNetwork(MaskNetwork):
    """One whose weights depend on the side of its images, and which takes no other."""

    @register_to_config
    def __init__(self, architecture: str, image_size: int):
        ModelMixin.__init__(self)
        self.network = builder_of(architecture)(image_size)


class ClassesMaskNetwork(MaskNetwork):
    """One of several classes; with an `image_size`, as `SizedMaskNetwork`."""

    @register_to_config
    def __init__(self, architecture: str, classes: int, image_size: int | None = None):
        ModelMixin.__init__(self)
        size = {} if image_size is None else {"image_size": image_size}
        self.network = builder_of(architecture)(**size, classes=classes)


def build_mask_network(architecture: str, image_size: int, classes: int = 1) -> MaskNetwork:
    """A network of `MASK_NETWORKS`, for images of a side in pixels."""
    sized = "image_size" in inspect.signature(builder_of(architecture)).parameters
    if classes > 1:
        return ClassesMaskNetwork(architecture, classes, image_size if sized else None)
    return SizedMaskNetwork(architecture, image_size) if sized else MaskNetwork(architecture)
