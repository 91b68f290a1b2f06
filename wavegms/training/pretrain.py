"""A first autoencoder, from pictures that the project draws: what others are trained from."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from wavegms.models.autoencoder import decode_masks, encode_images, encode_masks, freeze
from wavegms.training.autoencoder import build_autoencoder, descend
from wavegms.training.drawn import draw_mask, draw_picture
from wavegms.training.kept import keep_half
from wavegms.training.loss import soft_dice

_SIDE, _BATCH, _LEARNING_RATE = 64, 8, 5e-3

# Of the batches that only test, far from those that teach.
_TESTS = range(1_000_000, 1_000_024)


def pretrain_to(out: Path, channels: int, blocks: int, steps: int, seed: int) -> dict[str, Any]:
    """Trains a first autoencoder, and writes it with the card that is given back."""
    vae = pretrain(channels, blocks, steps, seed)
    about = {"channels": channels, "blocks": blocks, "steps": steps, "seed": seed}
    command = f"python -m wavegms pretrain --channels {channels} --blocks {blocks} --steps {steps}"
    out.parent.mkdir(parents=True, exist_ok=True)
    made = {"made by": f"{command} --seed {seed}"}
    return keep_half(out, vae, made | about | {"on pictures it had not": judge(vae, seed)})


def pretrain(channels: int, blocks: int, steps: int, seed: int) -> AutoencoderTiny:
    """An autoencoder of drawn pictures and masks; everything follows from these numbers."""
    torch.manual_seed(seed)
    vae = build_autoencoder(channels, blocks)
    pairs = (draw_batch(seed, number) for number in range(steps))
    for _ in descend(vae, pairs, steps, _LEARNING_RATE):
        pass
    return freeze(vae)


def draw_batch(seed: int, number: int) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, H, W) and masks (B, 1, H, W), which follow from seed and number alone."""
    rng = np.random.default_rng((seed, 3, number))
    masks = [draw_mask(rng, _SIDE) for _ in range(_BATCH)]
    pictures = np.stack([draw_picture(rng, _SIDE, mask) for mask in masks])
    return torch.from_numpy(pictures), torch.from_numpy(np.float32(masks))[:, None]


@torch.inference_mode()
def judge(vae: AutoencoderTiny, seed: int) -> dict[str, float]:
    """How pictures and masks come back that it had not: the means of PSNR in dB and of Dice."""
    psnr, dice = [], []
    for pictures, masks in (draw_batch(seed, number) for number in _TESTS):
        decoded = ((vae.decode(encode_images(vae, pictures)).sample + 1) / 2).clamp(0, 1)
        psnr.append(-10 * (decoded - pictures).square().flatten(1).mean(1).log10())
        dice.append(soft_dice((decode_masks(vae, encode_masks(vae, masks)) >= 0.5).float(), masks))
    means = torch.cat(psnr).mean().item(), torch.cat(dice).mean().item()
    return {"image_psnr": round(means[0], 2), "mask_dice": round(means[1], 4)}
