"""GSS (Chen et al. 2023): masks as codes of a frozen autoencoder, which are classified."""

from collections.abc import Sequence

import torch
from diffusers import VQModel
from monai.networks.nets import resnet50
from torch import Generator, Tensor, nn
from torch.nn import functional

from wavegms.classes import colours_of
from wavegms.models.autoencoder import Autoencoder, Generators
from wavegms.models.generative import Decode, Generative, generative_network
from wavegms.models.palette import BLACK_AND_WHITE, Palette
from wavegms.models.rivals.swin_unet import Stage

_CODES_WEIGHT, _PIXELS_WEIGHT = 0.8, 0.2

# Of the codebook's training.
_BATCH, _RATE, _CHECK_STEPS, _CHECKED, _ENOUGH = 4, 2e-3, 50, 16, 0.98


class ResNetMaps(nn.Module):
    """(B, 3, H, W) -> the four maps of a ResNet-50, at 1/4 to 1/32 of the sides."""

    channels = (256, 512, 1024, 2048)

    def __init__(self):
        super().__init__()
        self.net = resnet50(
            spatial_dims=2,
            n_input_channels=3,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=False,
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the class."""
        net, maps = self.net, []
        x = net.maxpool(net.act(net.bn1(net.conv1(images))))
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class SmallMaps(nn.ModuleList):
    """The same shapes by four strided convolutions, an eighth as wide and less."""

    channels = (16, 32, 64, 128)

    def __init__(self):
        super().__init__(
            nn.Sequential(nn.Conv2d(i, o, 2 * s - 1, s, s - 1), nn.BatchNorm2d(o), nn.ReLU())
            for i, o, s in zip((3, *self.channels), self.channels, (4, 2, 2, 2), strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the class."""
        maps = [images]
        for layer in self:
            maps.append(layer(maps[-1]))
        return maps[1:]


class Fusion(nn.Module):
    """Maps of several levels -> one of `out` channels, as large as the first."""

    def __init__(self, channels: Sequence[int], width: int, out: int):
        super().__init__()
        self.levels = nn.ModuleList(unit(into, width) for into in channels)
        self.fuse = unit(width * len(channels), out)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """See the class."""
        size = maps[0].shape[2:]
        resized = [
            functional.interpolate(level(x), size, mode="bilinear")
            for level, x in zip(self.levels, maps, strict=True)
        ]
        return self.fuse(torch.cat(resized, 1))


class GSS(Generative):
    """GSS-FF: images (B, 3, H, W) in [0, 1] -> logits of codes, and of a pixel's classes.

    The autoencoder of masks has its codes at 1/8; codes are classified at 1/4, so that masks are
    doubled before they are encoded. With a ResNet-50 and DALL-E's 8,192 codes there are 49,892,194
    parameters, without that autoencoder, the `codebook`. It is trained for at most so many `steps`
    before all else, and then frozen.
    """

    unexportable = "decides between codes, and the rounding of an ONNX file might take others"

    def __init__(
        self,
        codebook: VQModel,
        steps: int = 2000,
        backbone: type[nn.Module] = ResNetMaps,
        width: int = 384,
        dim: int = 512,
        heads: int = 16,
        wide: int = 2048,
        side: int = 56,
        classes: int = 1,
    ):
        super().__init__()
        self.palette = Palette(colours_of(classes))
        self.codebook, self.steps = codebook.requires_grad_(False), steps
        self.backbone = backbone()
        channels = self.backbone.channels
        self.fusion = Fusion(channels, width, dim)
        self.stage = Stage(dim, heads, side, (0.0, 0.0), mlp_ratio=2)
        self.norm = nn.LayerNorm(dim)
        self.widen = unit(dim, wide)
        self.classify = nn.Conv2d(wide, codebook.config.num_vq_embeddings, 1)
        self.pixels = Fusion(channels, width, width)
        self.classify_pixels = nn.Conv2d(width, classes + 1, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, codes, H/4, W/4) and (B, K + 1, H/4, W/4)."""
        maps = self.backbone(images)
        x = self.stage(self.fusion(maps).permute(0, 2, 3, 1))
        codes = self.classify(self.widen(self.norm(x).permute(0, 3, 1, 2)))
        return codes, self.classify_pixels(self.pixels(maps))

    def begin(self, masks: Tensor, vae: Autoencoder | None, seed: int) -> None:
        """Trains the codebook until masks come back with Dice 0.98."""
        train_codebook(self.codebook.requires_grad_(True), masks, self.steps, seed, self.palette)
        self.codebook.requires_grad_(False)

    def loss(
        self,
        images: Tensor,
        masks: Tensor,
        vae: Autoencoder | None = None,
        generators: Generators = None,
    ) -> dict[str, Tensor]:
        """See `Generative`."""
        codes, pixels = self(images)
        # at once at the size of the masks: the official code classifies every pixel
        pixels = functional.interpolate(pixels, masks.shape[2:], mode="bilinear")
        wanted = codes_of(self.codebook, doubled(masks), self.palette)
        terms = {
            "codes": _CODES_WEIGHT * functional.cross_entropy(codes, wanted),
            "pixels": _PIXELS_WEIGHT * functional.cross_entropy(pixels, masks[:, 0].long()),
        }
        return {"loss": sum(terms.values()), **terms}

    @torch.no_grad()
    def predict(
        self, images: Tensor, decode: Decode | None = None, generators: Generators = None
    ) -> Tensor:
        """See `Generative`; nearer to white than to black from 0.5. Nothing is drawn."""
        large = masks_of(self.codebook, self(images)[0].argmax(1), self.palette)
        return functional.interpolate(large, images.shape[2:], mode="bilinear")


def unit(into: int, out: int) -> nn.Sequential:
    """1 x 1 convolution, batch normalisation, ReLU."""
    return nn.Sequential(nn.Conv2d(into, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def doubled(masks: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B, 1, 2H, 2W), by the nearest pixel."""
    return functional.interpolate(masks, scale_factor=2)


def build_codebook(codes: int = 512, width: int = 64, groups: int = 32) -> VQModel:
    """An autoencoder of masks with codes at 1/8, untrained: in the place of DALL-E's."""
    blocks = 4
    return VQModel(
        block_out_channels=(width,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4,
        num_vq_embeddings=codes,
        norm_num_groups=groups,
    )


def codebook_loss(codebook: VQModel, masks: Tensor, palette: Palette = BLACK_AND_WHITE) -> Tensor:
    """What it is trained by before it is frozen: squared error, and codes near to what is coded."""
    pictures = palette.paint(masks) * 2 - 1
    coded = codebook.decode(codebook.encode(pictures).latents)
    return functional.mse_loss(coded.sample, pictures) + coded.commit_loss.mean()


def train_codebook(
    codebook: VQModel,
    masks: Tensor,
    steps: int,
    seed: int,
    palette: Palette = BLACK_AND_WHITE,
) -> float:
    """By masks (N, 1, H, W), doubled, turned and flipped; gives the Dice of the last check."""
    numbers = torch.arange(1, palette.classes + 1, device=masks.device)[:, None, None]
    generator = Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(codebook.parameters(), lr=_RATE)
    dice = 0.0
    for step in range(1, steps + 1):
        chosen = torch.randint(len(masks), (_BATCH,), generator=generator)
        turns, flip = torch.randint(4, (2,), generator=generator).tolist()
        shown = doubled(masks[chosen.to(masks.device)]).rot90(turns, (2, 3))
        loss = codebook_loss(codebook, shown.flip(3) if flip % 2 else shown, palette)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % _CHECK_STEPS == 0 or step == steps:
            shown = doubled(masks[:_CHECKED])
            codes = codes_of(codebook, shown, palette)
            found = (masks_of(codebook, codes, palette) >= 0.5).to(shown)
            wanted = (shown == numbers).to(shown)
            both, either = (one.sum((0, 2, 3)) for one in (found * wanted, found + wanted))
            dice = (2 * both / either.clamp_min(1)).mean().item()
            if dice >= _ENOUGH:
                break
    return dice


@torch.no_grad()
def codes_of(codebook: VQModel, masks: Tensor, palette: Palette = BLACK_AND_WHITE) -> Tensor:
    """(B, 1, H, W), 0 to K -> the indices of codes (B, H/8, W/8)."""
    latents = codebook.encode(palette.paint(masks) * 2 - 1).latents
    _, _, (_, _, indices) = codebook.quantize(latents)
    return indices.view(len(masks), *latents.shape[2:])


@torch.no_grad()
def masks_of(codebook: VQModel, codes: Tensor, palette: Palette = BLACK_AND_WHITE) -> Tensor:
    """Indices of codes (B, h, w) -> soft masks (B, K, 8h, 8w) in [0, 1]."""
    shape = (*codes.shape, codebook.config.latent_channels)
    latents = codebook.quantize.get_codebook_entry(codes.flatten(), shape)
    decoded = codebook.decode(latents, force_not_quantize=True).sample
    if palette.classes == 1:  # the mean before the scaling: in another order the last bit differs
        decoded = decoded.mean(1, keepdim=True)
    return palette.shares((decoded + 1) / 2)


@generative_network
def gss(classes: int = 1) -> GSS:
    """With DALL-E's number of codes and a ResNet-50, 49,892,194 parameters."""
    return GSS(build_codebook(8192), classes=classes)


@generative_network
def gss_small(classes: int = 1) -> GSS:
    """An eighth of its width and less, a codebook of 64."""
    codebook = build_codebook(64, 8, 4)
    return GSS(codebook, 100, SmallMaps, width=32, dim=32, heads=4, wide=64, classes=classes)
