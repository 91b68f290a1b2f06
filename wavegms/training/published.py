"""The recipes of `wavegms/recipes.py` at work: losses, what learns, what is optimised.

A loss takes logits, the mask's (B, 1, H, W) first and then those of auxiliary masks, and masks
(B, 1, H, W), 0, 1, or 2 for pixels that do not count. Of several classes, logits are (B, K + 1, H,
W), the background's first, and masks 0 to K, or K + 1: a softmax and the cross-entropy of all
classes are in the place of the sigmoid and the binary one, and a Dice is the mean of the classes'.
What it takes over a batch it takes, with several processes, over each one's part.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from wavegms.models.autoencoder import Autoencoder, Generators, at_least_float32
from wavegms.models.build import Network
from wavegms.models.generative import GenerativeNetwork
from wavegms.models.mask_network import MaskNetwork
from wavegms.recipes import Recipe

Terms = dict[str, Tensor]

# Of EGE-UNet's auxiliary masks, the deepest first.
_OF_EGE = (0.1, 0.2, 0.3, 0.4, 0.5)

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def bce(logits: Sequence[Tensor], masks: Tensor) -> Terms:
    """MultiResUNet's: cross-entropy."""
    return _sum(bce=_mean(*_pixels(logits[0], masks)))


def weighted_bce_dice(logits: Sequence[Tensor], masks: Tensor) -> Terms:
    """ACC-UNet's and UCTransNet's: half Dice with squares, of halved values, half cross-entropy.

    The latter is the mean of those of background and foreground in the whole batch.
    """
    entropy, counted = _pixels(logits[0], masks)
    shares, wanted = _foreground(logits[0], masks)
    values = range(1 + wanted.shape[1])
    parts = (_mean(entropy, counted & (masks == value)) for value in values)
    dice = _dice(shares / 2, wanted / 2, counted, squared_pred=True)
    return _sum(bce=0.5 * sum(parts) / len(values), dice=0.5 * dice)


def nnunet(logits: Sequence[Tensor], masks: Tensor) -> Terms:
    """nnU-Net's: cross-entropy and the batch's Dice of the foreground, at every supervised size.

    Each size weighs half of the one above, together 1; masks are made smaller by their nearest
    pixels. nnU-Net leaves the 1 of 1 - Dice out.
    """
    weights = [2.0**-level for level in range(len(logits))]
    entropy = dice = 0.0
    for weight, one in zip(weights, logits, strict=True):
        smaller = functional.interpolate(masks, one.shape[2:], mode="nearest")
        pixels, counted = _pixels(one, smaller)
        share = weight / sum(weights)
        entropy = entropy + share * _mean(pixels, counted)
        dice = dice + share * _dice(*_foreground(one, smaller), counted, batch=True)
    return _sum(ce=entropy, dice=dice)


def egeunet(logits: Sequence[Tensor], masks: Tensor) -> Terms:
    """EGE-UNet's: cross-entropy and Dice smoothed by 1, of the mask and of five auxiliary ones."""

    def one(logits: Tensor) -> Tensor:
        entropy, counted = _pixels(logits, masks)
        dice = _dice(*_foreground(logits, masks), counted, smooth_nr=1.0, smooth_dr=1.0)
        return _mean(entropy, counted) + dice

    mask, *auxiliary = logits
    pairs = zip(_OF_EGE, auxiliary, strict=True)
    return _sum(seg=one(mask), auxiliary=sum(weight * one(other) for weight, other in pairs))


def swin_unet(logits: Sequence[Tensor], masks: Tensor) -> Terms:
    """Swin-Unet's and SME-SwinUNet's: 0.4 cross-entropy, 0.6 Dice with squares.

    Of foreground and background, each over the whole batch.
    """
    entropy, counted = _pixels(logits[0], masks)
    every = (
        torch.cat([1 - one.sum(1, keepdim=True), one], 1) for one in _foreground(logits[0], masks)
    )
    dice = _dice(*every, counted, squared_pred=True, batch=True)
    return _sum(ce=0.4 * _mean(entropy, counted), dice=0.6 * dice)


LOSSES: dict[str, Callable[[Sequence[Tensor], Tensor], Terms]] = {
    loss.__name__: loss for loss in (bce, weighted_bce_dice, nnunet, egeunet, swin_unet)
}


class Logits(nn.Module):
    """A mask network as a published loss looks at it."""

    def __init__(self, model: MaskNetwork):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the mask's logits, and what auxiliary ones there are."""
        logits = self.model.network(images)
        return logits if isinstance(logits, list) else [logits]


class Averaged(nn.Module):
    """A generative network that learns, and its moving average, which is the one that is kept.

    The factor grows from 0.2 to `most` with the number of steps, so that a short training is no
    average of its beginning.
    """

    def __init__(self, model: GenerativeNetwork, most: float):
        super().__init__()

        def average(ours: list[Tensor], theirs: list[Tensor], steps: Tensor) -> None:
            factor = min(most, (1 + steps.item()) / (10 + steps.item()))
            torch._foreach_lerp_(ours, theirs, 1 - factor)

        self.learning = copy.deepcopy(model)
        self.average = AveragedModel(nn.Identity(), multi_avg_fn=average)
        self.average.module = model

    def forward(
        self, images: Tensor, masks: Tensor, vae: Autoencoder | None, generators: Generators
    ) -> Terms:
        """As the network."""
        return self.learning(images, masks, vae, generators)


def learner_of(recipe: Recipe, model: Network) -> nn.Module:
    """What learns instead of a network, and holds it as one of its parts."""
    if isinstance(model, GenerativeNetwork):
        return Averaged(model, recipe.average) if recipe.average else model
    if recipe.loss == "nnunet":
        # here, because MONAI takes seconds to import
        from wavegms.models.rivals.nnunet import DeeplySupervised

        return DeeplySupervised(model)
    return Logits(model)


def optimizer_of(recipe: Recipe, learner: nn.Module) -> torch.optim.Optimizer:
    """With its groups of parameters; where there is a moving average, it follows each step."""
    averaged = isinstance(learner, Averaged)
    learning = learner.learning if averaged else learner
    groups = [{"params": [], "weight_decay": decay} for decay in (recipe.weight_decay, 0.0)]
    for module in learning.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                groups[recipe.undecayed and _is_undecayed(module, name)]["params"].append(parameter)
    optimizer = getattr(torch.optim, recipe.optimizer)(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        fused=True,
        **recipe.options,
    )
    if averaged:
        optimizer.register_step_post_hook(lambda *_: learner.average.update_parameters(learning))
    return optimizer


def _is_undecayed(module: nn.Module, name: str) -> bool:
    return isinstance(module, _NORMS) or name == "relative_position_bias_table"


def _sum(**terms: Tensor) -> Terms:
    return {"loss": sum(terms.values()), **terms}


def _pixels(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each pixel, and whether it counts: (B, 1, H, W) each."""
    counted = masks <= _classes(logits)
    target, logits = masks * counted, at_least_float32(logits)
    if _classes(logits) == 1:
        target = target.to(logits)
        entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return entropy, counted
    return functional.cross_entropy(logits, target[:, 0].long(), reduction="none")[:, None], counted


def _foreground(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of the classes and what they should be, (B, K, H, W) each."""
    if _classes(logits) == 1:
        return logits.sigmoid(), masks
    numbers = torch.arange(1, logits.shape[1], device=masks.device)[:, None, None]
    return logits.softmax(1)[:, 1:], (masks == numbers).to(logits)


def _classes(logits: Tensor) -> int:
    return max(1, logits.shape[1] - 1)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum() / counted.sum().clamp_min(1)


def _dice(probabilities: Tensor, masks: Tensor, counted: Tensor, **options: bool | float) -> Tensor:
    # here, because MONAI takes seconds to import
    from monai.losses import DiceLoss

    return DiceLoss(**options)(at_least_float32(probabilities) * counted, masks * counted)
