"""`WaveGMSPipeline`: the door for users. It saves, loads and predicts."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import snapshot_download
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional

from wavegms.classes import label_map
from wavegms.errors import InputError, first_line, require_number, require_one_class
from wavegms.files import is_hub_id, only_seed
from wavegms.images import FULL_SCALE, Scale, as_rgb, resize_image
from wavegms.models.autoencoder import Autoencoder, channels_last, freeze, latent_channels_of
from wavegms.models.encoder import MultiResolutionEncoder
from wavegms.models.export import OnnxExport, write_onnx
from wavegms.models.generative import GenerativeNetwork
from wavegms.models.guided import GuidedLatentMappingModel
from wavegms.models.mapping import LatentMappingModel
from wavegms.models.mask_decoder import MaskDecoder, kept_mask_decoder
from wavegms.models.mask_network import ClassesMaskNetwork, MaskNetwork, SizedMaskNetwork
from wavegms.models.palette import BLACK_AND_WHITE, Palette
from wavegms.models.segmenter import map_latents
from wavegms.models.volumetric import LatentMappingModel3d, MultiResolutionEncoder3d
from wavegms.models.weights import AUTOENCODERS, quiet_loading, require_complete, require_finite
from wavegms.models.windows import in_parts
from wavegms.variants import Decoder

ImageInput = Image.Image | np.ndarray | Tensor

_DOWNLOADED = ["model_index.json", "*/config.json", "*/*.safetensors"]

_SEEN = ("image_size", "greys", "classes")

# What may stand in a saved pipeline.
_NETWORKS = {
    "encoder": (MultiResolutionEncoder, MultiResolutionEncoder3d),
    "mapping": (LatentMappingModel, GuidedLatentMappingModel, LatentMappingModel3d),
    "vae": AUTOENCODERS,
    "network": (MaskNetwork, SizedMaskNetwork, ClassesMaskNetwork, GenerativeNetwork),
    "mask_decoder": (MaskDecoder,),
}


@dataclass
class WaveGMSOutput(BaseOutput):
    """What a prediction returns, one entry an input image, each at that image's own size.

    `masks` are bool (height, width), True inside the segmented region; `probabilities` float32 in
    [0, 1]. Of a model of several classes, masks are uint8, the number of a pixel's class from 1 in
    the order of `WaveGMSPipeline.classes` or 0, and probabilities (classes, height, width).
    """

    masks: list[np.ndarray]
    probabilities: list[np.ndarray]


class ParameterCounts(NamedTuple):
    """All parameters, both halves of the autoencoder included, and those that are not frozen."""

    total: int
    trainable: int


class WaveGMSPipeline(DiffusionPipeline):
    """Segments images; the one door for every variant.

    In latent space: encoder -> latent mapping model -> decoder of the frozen autoencoder. Without
    an encoder the frozen autoencoder encodes the image as well. A network without latents is the
    only part of its pipeline; a generative one may have latents of its own and the autoencoder.

    `decoder` says what decodes: "exact", the frozen autoencoder, or "fast", a mask decoder, which
    is a part of the pipeline from then on; see :meth:`choose_decoder`.

    `image_size` is the side in pixels at which the network was trained. Inputs of another size are
    resized to it and the predictions back. `greys` is the scale of the images it was trained on, as
    `Scale` writes it; None, of models of before, takes 16 bits as 0 to 65535. `classes` are the
    names of several classes, each with its colour, such as "cyst #ff0000"; None where there is one.
    """

    _optional_components = ["encoder", "mapping", "vae", "network", "mask_decoder"]  # noqa: RUF012

    def __init__(
        self,
        encoder: MultiResolutionEncoder | None = None,
        mapping: LatentMappingModel | None = None,
        vae: Autoencoder | None = None,
        network: MaskNetwork | GenerativeNetwork | None = None,
        image_size: int = 224,
        greys: str | None = None,
        mask_decoder: MaskDecoder | None = None,
        classes: Sequence[str] | None = None,
    ):
        super().__init__()
        if network is None and (mapping is None or vae is None):
            raise ValueError("a pipeline needs mapping and vae, or network")
        decodes = isinstance(network, GenerativeNetwork) and network.config.autoencoder is not None
        if decodes and vae is None:
            raise ValueError("this network needs the autoencoder whose latents it knows")
        others = (encoder, mapping) if decodes else (encoder, mapping, vae, mask_decoder)
        if network is not None and any(part is not None for part in others):
            raise ValueError("a pipeline with a network takes no other part")
        for name, part in (("encoder", encoder), ("latent mapping model", mapping)):
            if part is not None and part.config.latent_channels != latent_channels_of(vae):
                raise InputError(
                    f"the {name} is made for latents of {part.config.latent_channels} channels, "
                    f"and the autoencoder's have {latent_channels_of(vae)}: take the autoencoder "
                    "that it was trained with"
                )
        known = getattr(getattr(network, "config", None), "classes", 1)
        if network is not None and known != len(classes or ("one",)):
            raise InputError(
                f"the network was trained on {known} classes, and there are names for "
                f"{len(classes or ())}: take the network that belongs to them"
            )
        if mask_decoder is not None and not mask_decoder.fits(vae):
            raise InputError(
                "the mask decoder was taught by another autoencoder than the pipeline's: leave it "
                "out, or take the one of this autoencoder"
            )
        self.register_modules(
            encoder=encoder, mapping=mapping, vae=vae, network=network, mask_decoder=mask_decoder
        )
        self.decoder: Decoder = "exact"
        self.scale = FULL_SCALE if greys is None else Scale.parse(greys)
        named = [one.split() for one in classes or ()]
        self.classes = tuple(name for name, _ in named)
        self.palette = Palette(tuple(colour for _, colour in named)) if named else BLACK_AND_WHITE
        self.register_to_config(image_size=image_size, greys=greys)
        if classes:
            self.register_to_config(classes=list(classes))
        for part in self._parts():
            part.eval()
        for part in (vae, mask_decoder):
            if part is not None:
                freeze(part)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, decoder: Decoder = "exact", **options: Any
    ) -> Self:
        """Opens a saved pipeline in evaluation mode, whichever variant it holds.

        It is a folder that `save_pretrained` wrote, or one that holds a single such folder named
        `seed_<n>`; or, given as a string that names no folder here, a hub id. A `Path` is never
        looked up on the hub. For `decoder` see :meth:`choose_decoder`. Options are diffusers', such
        as `torch_dtype`.

        Raises:
            InputError: there is no such folder, it holds the weights of several seeds or names
                other networks than ours, or a weight is missing, broken, of another shape, or
                no finite number; or the decoder is not to be had.
        """
        where = pretrained_model_name_or_path
        try:
            if is_hub_id(where) and not Path(where).is_dir():
                folder = _download(where, options)
            else:
                folder = only_seed(Path(where))
            networks = require_complete(folder, _NETWORKS)
            # diffusers' own way to its parts imports ONNX Runtime, to see whether they are of it
            with quiet_loading():
                parts = {
                    name: network.from_pretrained(
                        folder / name, **options | {"use_safetensors": True}
                    )
                    for name, network in networks.items()
                }
            for part in parts.values():
                require_finite(part, folder)
            index = cls.load_config(folder)
            pipeline = cls(**parts, **{name: index[name] for name in _SEEN if name in index})
            pipeline.register_to_config(_name_or_path=str(folder))
            pipeline.choose_decoder(decoder)
            return pipeline
        except InputError:
            raise
        except Exception as error:  # of diffusers, the hub client or safetensors
            raise InputError(
                f"the pipeline {where} cannot be loaded ({first_line(error)}): check the path, or "
                "train the model again"
            ) from error

    @classmethod
    def sharing(cls, other: "WaveGMSPipeline") -> Self:
        """One of this kind with another's networks, which are not copied, and its decoder."""
        shared = cls(**other.components, **other.seen)
        shared.register_to_config(_name_or_path=other.name_or_path)
        shared.decoder = other.decoder
        return shared

    @property
    def seen(self) -> dict[str, Any]:
        """What its networks were trained to see, as a pipeline is made with it."""
        return {name: self.config.get(name) for name in _SEEN}

    @property
    def parameter_counts(self) -> ParameterCounts:
        """How many parameters it has, and how many of them are not frozen."""
        parts = self._parts()
        total = sum(part.num_parameters() for part in parts)
        return ParameterCounts(total, sum(part.num_parameters(True) for part in parts))

    @property
    def depth(self) -> int:
        """Of how many consecutive slices of a volume a window of the network is; 1: of images."""
        if self.mapping is not None:
            return self.mapping.config.get("depth", 1)
        return getattr(getattr(self.network, "network", None), "depth", 1)

    def choose_decoder(self, decoder: Decoder) -> None:
        """What decodes masks from now on; a network without latents has nothing to choose.

        For "fast" the pipeline takes the mask decoder that it was saved with, or else the one in
        `weights/` that was taught by its autoencoder.

        Raises:
            InputError: there is none for this autoencoder, or the masks have several classes.
        """
        if decoder not in get_args(Decoder):
            raise InputError(f"decoder is {decoder!r}: choose exact or fast")
        if self.vae is not None and decoder == "fast":
            require_one_class(len(self.classes), "decoder fast", "choose exact")
        if self.vae is not None and decoder == "fast" and self.mask_decoder is None:
            found = kept_mask_decoder(self.vae)
            # torch's own way, as diffusers' warns of what does not concern it
            nn.Module.to(found, device=self.device, dtype=self.dtype)
            self.register_modules(mask_decoder=found)
        self.decoder = decoder

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H/8, W/8) -> soft masks (B, K, H, W) in [0, 1], as was chosen."""
        if self.decoder == "fast":
            return self.mask_decoder(channels_last(latents))
        return self.palette.decode(self.vae, latents)

    def _parts(self) -> list[nn.Module]:
        parts = (self.encoder, self.mapping, self.vae, self.network, self.mask_decoder)
        return [part for part in parts if part is not None]

    @torch.inference_mode()
    def predict(self, images: Tensor, generator: Generator | None = None) -> Tensor:
        """Soft masks (B, K, H, W) in [0, 1], float32, of images (B, 3, H, W) in [0, 1].

        K is 1, or how many classes there are, whose probabilities at a pixel sum to at most 1. The
        sides of images are ones that the network takes: divisible by 8, or what it asks for. To a
        3-D network images are windows of `depth` consecutive slices, or one of fewer.
        `generator` is the random state of an encoder that samples at inference, or of a generative
        network, which otherwise begins with the same noise for every image.
        """
        images = channels_last(images.to(device=self.device, dtype=self.dtype))
        if isinstance(self.network, GenerativeNetwork):
            return self.network.predict(images, self.decode, generator).float()
        if self.network is not None:
            return self.network(images).float()
        _, levels = map_latents(self.encoder, self.mapping, self.vae, images, generator=generator)
        return self.decode(levels[-1]).float()

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        batch_size: int = 12,
        threshold: float = 0.5,
        generator: Generator | None = None,
        scaled: bool = False,
    ) -> WaveGMSOutput:
        """Segments one image or many, of any size and mode.

        An image is a PIL image of any 8- or 16-bit mode; or an array (H, W), (H, W, 1), (H, W, 3)
        or (H, W, 4), uint8, uint16 or float in [0, 1]; or a tensor (1, H, W) or (3, H, W), uint8 or
        float in [0, 1]. Several are a sequence of such, or an array or tensor with one more
        dimension in front; an array (3, H, W) or (4, H, W) is refused, as it may also be an image
        with its channels in front. A model of slices between their neighbours (`scale.context`)
        takes the slices below, at and above for the three channels. A 3-D network (`depth` above 1)
        takes consecutive slices of one volume, from below to above. Values are taken on the scale
        of the training images, unless they are `scaled` already. A pixel belongs to the mask from a
        probability of `threshold`, above 0 and at most 1; of several classes see
        `wavegms.classes.label_map`.

        Raises:
            InputError: an argument has no such form, or values of an image lie outside [0, 1].
        """
        require_number("batch_size", batch_size, Integral, "a whole number, at least 1")
        require_number("threshold", threshold, Real, "above 0 and at most 1", 1)
        if not isinstance(generator, Generator | None):
            raise InputError(
                f"generator must be a torch.Generator, not {type(generator).__name__}: make one by "
                "torch.Generator().manual_seed(...)"
            )
        items = _as_list(images)
        size, scale = self.config.image_size, Scale() if scaled else self.scale
        masks, probabilities = [], []
        sizes: dict[int, tuple[int, int]] = {}

        def predicted(places: range) -> Tensor:
            prepared = []
            for place in places:
                image, sizes[place] = _prepare(items[place], size, scale)
                prepared.append(image)
            return self.predict(torch.stack(prepared), generator=generator).cpu()

        # a single batch is over before a bar would be read
        several = len(items) > batch_size
        with self.progress_bar(total=len(items)) if several else nullcontext() as bar:
            for places, soft_masks in in_parts(predicted, len(items), batch_size, self.depth):
                for place, soft in zip(places, soft_masks, strict=True):
                    resized = resize_probabilities(soft, sizes[place])
                    probabilities.append(resized)
                    several = self.classes
                    masks.append(label_map(resized, threshold) if several else resized >= threshold)
                if bar is not None:
                    bar.update(len(places))
        return WaveGMSOutput(masks=masks, probabilities=probabilities)

    def export_onnx(self, path: str | Path) -> OnnxExport:
        """Writes the pipeline as one ONNX file that gives what :meth:`predict` gives.

        Its input `images` is (B, 3, S, S) float32 in [0, 1] with any B and S the pipeline's
        `image_size`, its output `probabilities` is (B, 1, S, S) float32 in [0, 1]. It is float32
        whatever type and device the pipeline has; that stays as it is. Metadata say what goes in,
        what comes out, and that it is not for clinical use.

        The file is run in ONNX Runtime on the CPU and compared with :meth:`predict` before it takes
        its name. A failure leaves no file, and one of that name as it was.

        Raises:
            InputError: the path ends otherwise or cannot be written, the encoder draws a sample at
                inference, the network cannot be in such a file, or a probability differs by more
                than `wavegms.models.export.TOLERANCE`.
        """
        return write_onnx(self, path)


def _download(hub_id: str, options: Mapping[str, Any]) -> Path:
    """What a pipeline needs of a repository on the hub, and no code.

    `DiffusionPipeline.download` refuses classes that are not its own library's.
    """
    known = ("cache_dir", "force_download", "local_files_only", "revision", "token")
    asked = {name: options[name] for name in known if name in options}
    return Path(snapshot_download(hub_id, allow_patterns=_DOWNLOADED, **asked))


def _as_list(images: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, np.ndarray):
        one_in_colour = images.ndim == 3 and images.shape[-1] in (1, 3, 4)
        if images.ndim == 0:
            raise InputError("an image array must be (H, W[, 1, 3 or 4]), not a single number")
        if images.ndim == 3 and not one_in_colour and len(images) in (3, 4):
            raise InputError(
                f"an array {images.shape} may be one image with its channels in front or "
                f"{len(images)} grey ones: give array.transpose(1, 2, 0), or list(array)"
            )
        if images.ndim == 3 and not one_in_colour and images.shape[-1] < 8:
            raise InputError(
                f"an array {images.shape} is no image, (H, W[, 1, 3 or 4]), nor several: give "
                "array[..., 0] for one channel, or array[..., :3] for colours"
            )
        return [images] if images.ndim == 2 or one_in_colour else list(images)
    if isinstance(images, str | Path):
        return [images]
    if not isinstance(images, Iterable) or isinstance(images, Mapping):
        raise InputError(f"expected an image, or a sequence of images, not {type(images).__name__}")
    return list(images)


def _prepare(image: ImageInput, size: int, scale: Scale) -> tuple[Tensor, tuple[int, int]]:
    """An image as float (3, size, size) in [0, 1], and its own (height, width).

    8-bit input takes the same way as in data preparation (Pillow), so that predicting on a raw
    image equals predicting on the prepared one; floats cannot and are resized by torch.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise InputError(f"an image tensor must be (1 or 3, H, W), not {tuple(image.shape)}")
        # numpy has no bfloat16
        image = image.float() if image.is_floating_point() else image
        image = image.detach().cpu().movedim(0, -1).numpy()
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[-1] == 1:
            image = image[..., 0]
        if image.ndim != 2 and not (image.ndim == 3 and image.shape[-1] in (3, 4)):
            raise InputError(f"an image array must be (H, W[, 1, 3 or 4]), not {image.shape}")
        if not image.size:
            raise InputError(f"an image must have pixels, but its shape is {image.shape}")
        if np.issubdtype(image.dtype, np.floating):
            return _prepare_float(image, size)
        if image.dtype == np.uint16 and image.ndim == 3:
            low, high = scale.ranges.get(16, (0, 65535))
            share = (image.astype(np.float32) - low) / np.float32(high - low)
            return _prepare_float(share.clip(0, 1), size)
        if image.dtype not in (np.uint8, np.uint16):
            raise InputError(f"an image must be uint8, uint16 or float, not {image.dtype}")
        image = Image.fromarray(image)
    if isinstance(image, str | Path):
        raise InputError(f"expected an image, not the name {image!r}: open it by PIL's Image.open")
    if not isinstance(image, Image.Image):
        raise InputError(f"expected a PIL image, array or tensor, not {type(image).__name__}")
    if 0 in image.size:
        raise InputError(f"an image must have pixels, but its size is {image.size}")
    rgb = as_rgb(image, scale)
    pixels = torch.from_numpy(np.array(resize_image(rgb, size)))
    return pixels.movedim(-1, 0).float() / 255, (rgb.height, rgb.width)


def _prepare_float(image: np.ndarray, size: int) -> tuple[Tensor, tuple[int, int]]:
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise InputError("a float image must lie in [0, 1]: divide 8-bit values by 255")
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    pixels = torch.from_numpy(image[..., :3].astype(np.float32)).movedim(-1, 0)
    return _resize(pixels, (size, size)).clamp(0, 1), image.shape[:2]


def resize_probabilities(soft: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A soft mask (1, H, W) at the (height, width) of its image, float32 (height, width) in [0, 1].

    Those of several classes, (K, H, W), stay so many.
    """
    resized = _resize(soft, size).clamp(0, 1).numpy()
    return resized[0] if len(resized) == 1 else resized


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
