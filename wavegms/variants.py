"""The trainable networks by name, as data without torch: the rows of Tables 4 and 2.

And what else is chosen by name, in params.yaml and by commands.
"""

from dataclasses import dataclass, replace
from typing import Literal

from wavegms import recipes
from wavegms.errors import InputError, require_one_class
from wavegms.recipes import Recipe

# What turns latents into masks: the frozen autoencoder's own, or a mask decoder taught by it.
Decoder = Literal["exact", "fast"]

# By what networks are trained: this project's loop, or what their authors published.
RecipeName = Literal["common", "published"]

# How a volume is cut into slices.
Plane = Literal["axial", "coronal", "sagittal"]

# How many consecutive slices of it a 3-D network takes: as many as a sub-band of the third level of
# its Haar transform is of.
WINDOW = 8

# What a network sees of it: each slice alone, or between the slices below and above.
Context = Literal["none", "neighbours"]


@dataclass(frozen=True)
class VariantSpec:
    """What makes a variant; everything else it shares with the others.

    `network` is what is trained: "wavelet" (encoder and mapping), "wavelet_3d" (those of windows of
    slices), "mapping" (of the autoencoder's own latent), "guided" (the same with the image's
    details), or the name of a function in `wavegms/models/mask_network.py` or
    `wavegms/models/rivals/`. `autoencoder` is the frozen one it needs, `aligned` whether L_align is
    part of its loss; one that is not `trained` has its weights from GMS. `batch_size` is its own
    where the name says one. `full_precision` is for one whose first gradients are so large that in
    bf16 they are others (the cosine to those of float32 was 0.2 to 0.6): bf16 is not chosen for it
    unasked. One that is not `graphable` computes something on the processor in every step; with
    `idle_weights`, some weights never get a gradient. A `generative` one is a function in
    `wavegms/models/rivals/` with a loss and a sampler of its own. With `several_classes` it knows
    more than one: as colours of the autoencoder, or as a network whose function takes their number.
    One of a `depth` above 1 takes windows of so many consecutive slices of a volume, and no
    pictures; its batches are whole windows. `published` is how its authors train it, for
    `training.recipe`; that of a variant between the latents of an autoencoder is this project's
    common one, which is Wave-GMS's.
    """

    title: str
    network: str
    autoencoder: Literal["tiny", "kl"] | None
    aligned: bool = False
    trained: bool = True
    batch_size: int | None = None
    side_divisor: int = 8
    smallest_side: int = 8
    full_precision: bool = False
    graphable: bool = True
    idle_weights: bool = False
    generative: bool = False
    several_classes: bool = False
    depth: int = 1
    published: Recipe | None = None

    @property
    def several_decoders(self) -> bool:
        """Whether it can be trained with either `Decoder`: masks are a Tiny-VAE's latents."""
        return self.autoencoder == "tiny" and not self.generative

    def batch_size_or(self, default: int) -> int:
        """Its own batch size, or the run's; of windows as many as it has room for, at least one."""
        images = self.batch_size or default
        return images if self.depth == 1 else max(1, images // self.depth) * self.depth

    def unfit(self, side: int) -> str:
        """What a side in pixels would have to be; empty if the network takes this one."""
        if side % self.side_divisor:
            return f"divisible by {self.side_divisor}"
        return "" if side >= self.smallest_side else f"of {self.smallest_side} or more"


_WAVE_GMS = VariantSpec("Wave-GMS", "wavelet", "tiny", aligned=True, several_classes=True)
_WAVE_GMS_3D = VariantSpec(
    "Wave-GMS 3-D", "wavelet_3d", "tiny", aligned=True, several_classes=True, depth=WINDOW
)
# at 16 pixels its lowest map would be a single voxel, which has no spread to normalise by
_UNET_3D = VariantSpec(
    "UNet 3-D",
    "unet_3d",
    None,
    side_divisor=16,
    smallest_side=32,
    several_classes=True,
    depth=WINDOW,
)
_TINY_VAE = VariantSpec("Tiny-VAE (trained)", "mapping", "tiny", several_classes=True)


def _rival(
    title: str, network: str, published: Recipe, side_divisor: int, **options: bool | int
) -> VariantSpec:
    """A system of Table 2 without an autoencoder; `options` are further entries."""
    entries = {"published": published, "side_divisor": side_divisor, "several_classes": True}
    return VariantSpec(title, network, None, **entries | options)


_MULTI_RES = _rival("MultiResUNet", "multiresunet", recipes.MULTIRESUNET, 16)
_ACC = _rival("ACC-UNet", "acc_unet", recipes.ACC_UNET, 16)
# at 32 pixels its lowest map is a single one, which has no spread to normalise by
_NNUNET = _rival("nnUNet", "nnunet", recipes.NNUNET, 32, smallest_side=64)
_EGE = _rival("EGE-UNet", "egeunet", recipes.EGEUNET, 32)
_SWIN = _rival("SwinUNet", "swin_unet", recipes.SWIN_UNET, 32)
_SME = _rival(
    "SME-SwinUNet", "sme_swin_unet", recipes.SME_SWIN_UNET, 32, graphable=False, idle_weights=True
)
_UCT = _rival("UCTransNet", "uctransnet", recipes.UCTRANSNET, 16)
_MEDSEGDIFF = _rival(
    "MedSegDiff-V2",
    "medsegdiff_v2",
    recipes.MEDSEGDIFF_V2,
    32,
    generative=True,
    several_classes=False,
)
_GSS = _rival("GSS", "gss", recipes.GSS, 32, generative=True)
_SDSEG = replace(
    _rival("SDSeg", "sdseg", recipes.SDSEG, 128, smallest_side=128, generative=True),
    autoencoder="kl",
)


def _small(spec: VariantSpec) -> VariantSpec:
    """The same system at the small setting, a network of its own name."""
    return replace(spec, title=f"{spec.title} (small)", network=f"{spec.network}_small")


# In the order of the paper's tables, which tables and figures here keep.
VARIANTS: dict[str, VariantSpec] = {
    # Without an autoencoder: a function of this name in wavegms/models/mask_network.py or in a file
    # of wavegms/models/rivals/. The small ones are for machines without a GPU, and for tests.
    "unet": VariantSpec("UNet", "unet", None, side_divisor=16, several_classes=True),
    "unet_3d": _UNET_3D,
    "multiresunet": _MULTI_RES,
    "multiresunet_small": _small(_MULTI_RES),
    "acc_unet": _ACC,
    "acc_unet_small": _small(_ACC),
    "nnunet": _NNUNET,
    "nnunet_small": replace(
        _small(_NNUNET),
        side_divisor=8,
        smallest_side=8,
        published=replace(recipes.NNUNET, network=None),
    ),
    "egeunet": _EGE,
    "egeunet_small": _small(_EGE),
    "swin_unet": _SWIN,
    "swin_unet_small": _small(_SWIN),
    "sme_swin_unet": _SME,
    "sme_swin_unet_small": _small(_SME),
    "uctransnet": _UCT,
    "uctransnet_small": _small(_UCT),
    "medsegdiff_v2": _MEDSEGDIFF,
    "medsegdiff_v2_small": replace(_small(_MEDSEGDIFF), side_divisor=8),
    "sdseg": _SDSEG,
    "sdseg_tiny": replace(_SDSEG, title="SDSeg (Tiny-VAE)", autoencoder="tiny"),
    "sdseg_small": replace(_small(_SDSEG), autoencoder="tiny", side_divisor=16, smallest_side=16),
    "gss": _GSS,
    "gss_small": _small(_GSS),
    "gms": replace(_TINY_VAE, title="GMS", autoencoder="kl"),
    # GMS's weights are of black and white
    "tinyvae_mismatch": replace(
        _TINY_VAE, title="Tiny-VAE (model mismatch)", trained=False, several_classes=False
    ),
    "tinyvae": _TINY_VAE,
    "tinyvae_multires_sft": replace(
        _TINY_VAE, title="Tiny-VAE + MultiRes SFT", network="guided", full_precision=True
    ),
    "wave_gms_no_alignment": replace(_WAVE_GMS, title="Wave-GMS (w/o alignment)", aligned=False),
    "wave_gms_batch_2": replace(_WAVE_GMS, title="Wave-GMS (batch size 2)", batch_size=2),
    "wave_gms_batch_4": replace(_WAVE_GMS, title="Wave-GMS (batch size 4)", batch_size=4),
    "wave_gms_3d": _WAVE_GMS_3D,
    "wave_gms": _WAVE_GMS,
}


def variant_spec(name: str) -> VariantSpec:
    """The entry of `VARIANTS`."""
    if name not in VARIANTS:
        raise InputError(f"variant {name!r} is unknown: choose among {', '.join(VARIANTS)}")
    return VARIANTS[name]


def followed_recipe(name: str, recipe: RecipeName) -> Recipe | None:
    """The published one of a variant, where that is wanted; None for the common one.

    Raises:
        InputError: it is wanted, but there is none.
    """
    spec = variant_spec(name)
    if recipe == "common":
        return None
    if spec.published is None and spec.autoencoder is None:
        raise InputError(
            f"variant {name} has no published recipe: {recipes.TAKE_COMMON}, or leave the variant "
            "out"
        )
    return spec.published


def require_side(name: str, side: int, parameter: str) -> None:
    """Checks that images have a side in pixels that a variant takes.

    `parameter` is what to change if not, as it stands in params.yaml.
    """
    if wanted := variant_spec(name).unfit(side):
        raise InputError(f"{parameter} is {side}, but variant {name} needs one {wanted}")


def require_classes(name: str, count: int) -> None:
    """Checks that a variant knows so many classes."""
    if not variant_spec(name).several_classes:
        able = ", ".join(other for other, spec in VARIANTS.items() if spec.several_classes)
        require_one_class(count, f"variant {name}", f"leave it out, or choose among {able}")


def require_volumes(name: str, volumes: bool) -> None:
    """Checks that a variant which takes windows of slices is given volumes, and not pictures."""
    depth = variant_spec(name).depth
    if depth > 1 and not volumes:
        raise InputError(
            f"variant {name} takes windows of {depth} consecutive slices of a volume, and the data "
            "are pictures: leave it out"
        )
