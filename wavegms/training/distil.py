"""Teaching a mask decoder what a frozen Tiny-VAE's own decoder gives, and how it would be climbed.

The lessons are latents of drawn masks, as they are and as a mapping model that is still bad gives
them: noisy, mixed, washed out. For each the teacher gives the soft mask and the direction in which
the latents would have to go for a better Dice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from tqdm import tqdm

from wavegms.errors import InputError, first_line
from wavegms.files import replace_file
from wavegms.models.autoencoder import channels_last, decode_masks, encode_masks
from wavegms.models.mask_decoder import MaskDecoder
from wavegms.models.weights import load_autoencoder
from wavegms.training.drawn import draw_mask
from wavegms.training.kept import keep_half
from wavegms.training.loss import soft_dice
from wavegms.training.recipe import learning_rate_factor

# Sides in pixels of the drawn masks, in turn, and about how many pixels make a lesson. Most are
# small, as a lesson at 224 takes as long as three of the others.
_SIDES, _PIXELS = (64, 96, 128, 64, 96, 224), 45_000

# The teacher takes longer than the pupil: so many steps a lesson, which learn from so many of the
# last ones beside it.
_STEPS, _REPEATED, _KEPT = 2, 3, 120

_LEARNING_RATE, _WARM_UP, _DIRECTION = 2e-3, 40, 0.3

# Steps between two states that an interrupted training goes on from.
_SAVED = 50

# Of the lessons that only test, far from those that teach.
_TESTS = range(1_000_000, 1_000_024)


@dataclass(frozen=True)
class Lesson:
    """Latents (B, C, h, w) and the teacher's soft masks (B, 1, 8h, 8w).

    `wanted` are masks of that shape, `gradient` that of the soft masks' Dice to them, (B, C, h, w).
    """

    latents: Tensor
    soft: Tensor
    wanted: Tensor
    gradient: Tensor


def distil_to(out: Path, where: str, steps: int, seed: int) -> dict[str, Any]:
    """Teaches a mask decoder, and writes it with the card that is given back."""
    vae = load_autoencoder(where)
    out.parent.mkdir(parents=True, exist_ok=True)
    pupil = distil(vae, steps, seed, out.with_suffix(".state"))
    about = {"autoencoder": Path(where).name, "steps": steps, "seed": seed}
    return keep_half(out, pupil, about | {"on lessons it had not": judge(pupil, vae, seed)})


@contextmanager
def _denormals_are_zero() -> Iterator[None]:
    """Some gradients are that small; on Intel's processors a step then took ten times longer."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)  # for the whole thread, others' arithmetic included


@_denormals_are_zero()
def distil(vae: AutoencoderTiny, steps: int, seed: int, state: Path) -> MaskDecoder:
    """A mask decoder that was taught by the decoder of a frozen Tiny-VAE.

    Everything follows from seed and steps. What an interrupted training goes on from is kept in
    the file `state`, which goes at the end.
    """
    torch.manual_seed(seed)
    pupil = MaskDecoder.untrained(vae).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=_LEARNING_RATE)
    done = _resume(state, pupil, optimizer, steps, seed)
    lessons: dict[int, Lesson] = {}
    bar = tqdm(range(done, steps), initial=done, total=steps, desc="teaching", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * learning_rate_factor(step, steps, _WARM_UP)
        terms = pupil_terms(pupil, _lesson_of(vae, seed, step, lessons))
        loss = terms["value"] + _DIRECTION * terms["direction"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix({name: f"{term.item():.3f}" for name, term in terms.items()}, refresh=False)
        if (step + 1) % _SAVED == 0:
            with replace_file(state) as fresh:
                states = {"pupil": pupil.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({"step": step + 1, "steps": steps, "seed": seed, **states}, fresh)
    state.unlink(missing_ok=True)
    return pupil.eval().requires_grad_(False)


def _resume(state: Path, pupil: MaskDecoder, optimizer: Optimizer, steps: int, seed: int) -> int:
    if not state.is_file():
        return 0
    try:
        saved = torch.load(state, weights_only=True)
        if (saved["steps"], saved["seed"]) != (steps, seed):
            raise ValueError(f"of {saved['steps']} steps and seed {saved['seed']}")
        if not torch.equal(saved["pupil"]["teacher"], pupil.teacher):
            raise ValueError("of another autoencoder")
        pupil.load_state_dict(saved["pupil"])
        optimizer.load_state_dict(saved["optimizer"])
        return saved["step"]
    except Exception as error:  # of pickle, zipfile, torch
        raise InputError(
            f"{state} is not the state of this training ({first_line(error)}): remove it"
        ) from error


def _lesson_of(vae: AutoencoderTiny, seed: int, step: int, lessons: dict[int, Lesson]) -> Lesson:
    """The newest lesson of a step with earlier ones of its side; `lessons` keeps the last."""
    newest, turn = step // _STEPS, len(_SIDES)
    side = _SIDES[newest % turn]
    known = [
        number
        for number in range(max(0, newest - _KEPT + 1), newest)
        if _SIDES[number % turn] == side
    ]
    rng = np.random.default_rng((seed, 2, step))
    repeated = rng.choice(known, min(_REPEATED, len(known)), replace=False) if known else []
    chosen = [newest, *map(int, repeated)]
    for number in chosen:
        if number not in lessons:
            lessons[number] = draw_lesson(vae, seed, number)
    lessons.pop(newest - _KEPT, None)
    names = [field.name for field in fields(Lesson)]
    return Lesson(*(torch.cat([getattr(lessons[n], name) for n in chosen]) for name in names))


def judge(pupil: MaskDecoder, vae: AutoencoderTiny, seed: int) -> dict[str, float]:
    """How a pupil does in lessons that it had not: see :func:`compare`."""
    compared = [
        compare(pupil, vae, lesson.latents, lesson.wanted)
        for lesson in (draw_lesson(vae, seed, number) for number in _TESTS)
    ]
    dice, cosine = (torch.cat(values) for values in zip(*compared, strict=True))
    return {
        "dice_mean": round(dice.mean().item(), 4),
        "dice_worst": round(dice.min().item(), 4),
        "gradient_cosine_mean": round(cosine.mean().item(), 3),
        "latents": len(dice),
    }


def compare(
    pupil: MaskDecoder, vae: AutoencoderTiny, latents: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Of each image the Dice of the two masks, and the cosine of the two gradients.

    The gradients are those of the soft Dice to the masks wanted.
    """
    soft, right = gradient_of(partial(decode_masks, vae), latents, wanted)
    own, found = gradient_of(pupil, latents, wanted)
    dice = soft_dice((own >= 0.5).float(), (soft >= 0.5).float())
    return dice, functional.cosine_similarity(right.flatten(1), found.flatten(1))


def draw_lesson(vae: AutoencoderTiny, seed: int, number: int) -> Lesson:
    """A lesson, which follows from seed and number alone."""
    rng = np.random.default_rng((seed, 1, number))
    side = _SIDES[number % len(_SIDES)]
    count = max(2, round(_PIXELS / side**2))
    drawn = np.stack([draw_mask(rng, side) for _ in range(count)])
    masks = torch.from_numpy(drawn.astype(np.float32))[:, None]
    with torch.no_grad():
        latents = _as_mapped(vae, rng, masks)
    other = torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.25)
    wanted = torch.where(other, masks.roll(1, 0), masks)
    soft, gradient = gradient_of(partial(decode_masks, vae), latents, wanted)
    return Lesson(latents, soft, wanted, gradient)


def gradient_of(
    decode: Callable[[Tensor], Tensor], latents: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """Soft masks, and the gradient of their soft Dice to the masks wanted."""
    latents = latents.detach().requires_grad_()
    soft = decode(latents)
    (gradient,) = torch.autograd.grad(soft_dice(soft, wanted).sum(), latents)
    return soft.detach(), gradient


def _as_mapped(vae: AutoencoderTiny, rng: Generator, masks: Tensor) -> Tensor:
    """Latents of masks as a mapping model gives them, from perfect to early in its training."""
    kinds = rng.choice(6, len(masks), p=(0.3, 0.2, 0.15, 0.1, 0.15, 0.1))
    pictures = masks.clone()
    for index in np.flatnonzero(kinds == 1):  # of a mask that is not black and white
        low, high = np.sort(rng.uniform(-0.2, 1.2, 2))
        softened = _smoothed(masks[index], np.exp(rng.uniform(0, np.log(10))))
        pictures[index] = low + (high - low) * softened
    latents = encode_masks(vae, pictures)
    shape, spread = latents.shape, latents.std((0, 2, 3)).clamp_min(0.1)[:, None, None]
    found = []
    for kind, mine, its in zip(kinds, latents, latents.roll(1, 0), strict=True):
        if kind == 2:  # half this mask, half another
            mine = mine + float(rng.uniform(0, 1)) * (its - mine)
        elif kind == 3:  # here this mask, there another
            place = _field(rng, (1, *shape[2:]), rng.uniform(0.5, 3)).sigmoid()
            mine = mine + place * (its - mine)
        elif kind == 4:  # washed out
            mine = _smoothed(mine, rng.uniform(0.5, 4)) * float(rng.uniform(0.2, 1.1))
        elif kind == 5:  # nothing yet
            level = torch.from_numpy(rng.normal(0, 1, (shape[1], 1, 1)).astype(np.float32))
            mine = (level + _field(rng, shape[1:], rng.uniform(0, 1.5))) * spread
        if rng.random() < 0.6:
            noise = _field(rng, shape[1:], float(np.exp(rng.uniform(np.log(0.02), 0))))
            mine = mine + noise * spread
        found.append(mine)
    return channels_last(torch.stack(found))


def _field(rng: Generator, shape: tuple[int, ...], height: float) -> Tensor:
    """Noise (C, h, w) of a standard deviation, of a random smoothness."""
    noise = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    if rng.random() < 0.6:
        noise = _smoothed(noise, rng.uniform(0.5, 4))
        noise = noise / noise.std().clamp_min(1e-6)
    return noise * height


def _smoothed(x: Tensor, sigma: float) -> Tensor:
    """(C, h, w) blurred by a Gaussian."""
    reach = min(int(2.5 * sigma) + 1, *(size - 1 for size in x.shape[1:]))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (weights / weights.sum()).view(1, 1, -1, 1)
    x = functional.pad(x[:, None], (reach,) * 4, mode="reflect")
    return functional.conv2d(functional.conv2d(x, kernel), kernel.movedim(2, 3))[:, 0]


def pupil_terms(pupil: MaskDecoder, lesson: Lesson) -> dict[str, Tensor]:
    """What is minimised: `value`, how far its soft masks are off, and `direction`.

    That is 1 - the mean cosine of its gradient to the teacher's.
    """
    latents = lesson.latents.detach().requires_grad_()
    scores = pupil.scores(latents)
    soft = scores.sigmoid()
    dice = soft_dice(soft, lesson.wanted).sum()
    (gradient,) = torch.autograd.grad(dice, latents, create_graph=True)
    right = lesson.gradient.flatten(1)
    cosine = functional.cosine_similarity(gradient.flatten(1), right, eps=1e-12)
    has_one = (right.norm(dim=1) > 1e-6).float()  # else nothing can be won
    cross = functional.binary_cross_entropy_with_logits(scores, lesson.soft)
    return {
        "value": cross + (1 - soft_dice(soft, lesson.soft)).mean(),
        "direction": ((1 - cosine) * has_one).sum() / has_one.sum().clamp_min(1),
    }
