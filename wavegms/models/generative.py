"""Networks with a loss and a sampler of their own: the generative baselines of Table 2."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Generator, Tensor, nn

from wavegms.images import IGNORED
from wavegms.models.autoencoder import Autoencoder, Generators

GENERATIVE: dict[str, Callable[..., "Generative"]] = {}

Decode = Callable[[Tensor], Tensor]

# Of the noise that a prediction begins with: the same for every image, so that none depends on the
# others of its batch.
_SEED = 2333

_AUTOENCODERS = {kind.__name__: kind for kind in (AutoencoderTiny, AutoencoderKL)}


class Generative(nn.Module):
    """What `generative_network` registers; `unexportable` is why no ONNX file can hold it.

    Images are (B, 3, H, W) in [0, 1], masks (B, 1, H, W), 0 or 1. Generators are one for each
    image, one for all, or None for torch's own random state.
    """

    unexportable = "draws random numbers, which an ONNX file cannot repeat"

    def begin(self, masks: Tensor, vae: Autoencoder | None, seed: int) -> None:
        """Once, before random weights are first trained: what follows from the training masks."""

    def loss(
        self, images: Tensor, masks: Tensor, vae: Autoencoder | None, generators: Generators
    ) -> dict[str, Tensor]:
        """`loss`, which goes backward, and the terms of its sum."""
        raise NotImplementedError

    def predict(self, images: Tensor, decode: Decode | None, generators: Generators) -> Tensor:
        """Soft masks (B, 1, H, W) in [0, 1]; `decode` makes them of the autoencoder's latents."""
        raise NotImplementedError


def generative_network(build: Callable[..., Generative]) -> Callable[..., Generative]:
    """Registers a network, under its function's name, for a `generative` entry of `VARIANTS`.

    A function with an argument `vae` is given an autoencoder of the run's shape.
    """
    GENERATIVE[build.__name__] = build
    return build


class GenerativeNetwork(ModelMixin, ConfigMixin):
    """A network of `GENERATIVE`, by its name there, as a part that diffusers saves and loads.

    `autoencoder` is the configuration of the frozen one whose latents it knows, None if it needs
    none; that one is no part of it.
    """

    @register_to_config
    def __init__(self, architecture: str, autoencoder: dict[str, Any] | None = None):
        super().__init__()
        build = _builder_of(architecture)
        if autoencoder is None:
            self.network = build()
        else:
            self.network = build(_of_shape(autoencoder))

    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        vae: Autoencoder | None = None,
        generators: Generators = None,
    ) -> dict[str, Tensor]:
        """The loss and its terms; pixels that do not count are black, as to an autoencoder.

        Other generators than one for each image are of another shape than what is drawn here.
        """
        drawn = generators if isinstance(generators, list) else None
        return self.network.loss(images, masks * (masks < IGNORED), vae, drawn)

    def predict(
        self, images: Tensor, decode: Decode | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Soft masks (B, 1, H, W) in [0, 1], each the same in any batch.

        By a fixed noise, or, image by image, by what a generator draws.
        """
        if generator is None:
            seeds = [_SEED] * len(images)
        else:
            options = {"generator": generator, "device": generator.device}
            seeds = [int(torch.randint(2**62, (), **options)) for _ in images]
        drawn = [Generator().manual_seed(seed) for seed in seeds]
        return self.network.predict(images, decode, drawn)


def build_generative(architecture: str, vae: Autoencoder | None) -> GenerativeNetwork:
    """A network of `GENERATIVE`, for the latents of this autoencoder if it needs one."""
    if "vae" not in inspect.signature(_builder_of(architecture)).parameters:
        return GenerativeNetwork(architecture)
    known = inspect.signature(type(vae).__init__).parameters  # AutoencoderTiny notes one more
    shape = {key: value for key, value in vae.config.items() if key in known}
    return GenerativeNetwork(architecture, {"_class_name": type(vae).__name__, **shape})


def _of_shape(config: Mapping[str, Any]) -> Autoencoder:
    return _AUTOENCODERS[config["_class_name"]].from_config(dict(config))


def _builder_of(architecture: str) -> Callable[..., Generative]:
    # here, as its files import this one
    from wavegms.models import rivals  # noqa: F401

    return GENERATIVE[architecture]
