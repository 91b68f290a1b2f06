"""Loading the Tiny-VAE from every form it comes in, and refusing everything else."""

import pickle
from contextlib import suppress

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from layouts import tree
from PIL import Image
from safetensors.torch import load_file, save_file
from test_variants import build_kl
from torch import nn

from wavegms import InputError, load_autoencoder
from wavegms.images import mask_values, resize_mask
from wavegms.models import autoencoder as module
from wavegms.models.autoencoder import (
    decode_latents,
    decode_masks,
    encode_images,
    encode_masks,
    freeze,
    latent_channels_of,
)
from wavegms.models.mid_block import MidBlockAutoencoderTiny
from wavegms.models.weights import read_tensors
from wavegms.training.autoencoder import build_autoencoder

POOL = ("0.weight", "1.weight", "1.bias", "3.weight")  # TAEF2's, in its blocks at the latents' size


class Block(nn.Module):
    """The original publication's residual block, from its tensors."""

    def __init__(self, state, prefix):
        super().__init__()
        self.pool = None
        if f"{prefix}.pool.0.weight" in state:
            self.pool = {name: state.pop(f"{prefix}.pool.{name}").float() for name in POOL}
        self.body = nn.Sequential(
            conv(state, f"{prefix}.conv.0"),
            nn.ReLU(),
            conv(state, f"{prefix}.conv.2"),
            nn.ReLU(),
            conv(state, f"{prefix}.conv.4"),
        )

    def forward(self, x):
        if self.pool is not None:
            wide, scale, shift, back = self.pool.values()
            y = torch.einsum("oi,bihw->bohw", wide[:, :, 0, 0], x)
            groups = y.unflatten(1, (4, -1))
            spread = groups.var((2, 3, 4), unbiased=False, keepdim=True)
            groups = (groups - groups.mean((2, 3, 4), keepdim=True)) / (spread + 1e-5).sqrt()
            y = groups.flatten(1, 2) * scale[:, None, None] + shift[:, None, None]
            x = x + torch.einsum("oi,bihw->bohw", back[:, :, 0, 0], y.relu())
        return torch.relu(self.body(x) + x)


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


def conv(state, prefix, stride=1):
    weight, bias = state.pop(f"{prefix}.weight"), state.pop(f"{prefix}.bias", None)
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride, padding=1, bias=bias is not None)
    layer.weight.data = weight.float()
    if bias is not None:
        layer.bias.data = bias.float()
    return layer


def original_encoder(state):
    """Images in [0, 1] to latents: 1, 3, 3, 3 blocks, halved in between."""
    state = dict(state)
    layers = [conv(state, "0"), Block(state, "1")]
    for first in (2, 6, 10):
        layers.append(conv(state, f"{first}", stride=2))
        layers += [Block(state, f"{first + k}") for k in (1, 2, 3)]
    layers.append(conv(state, "14"))
    assert not state, "a tensor was left over"
    return nn.Sequential(*layers)


def original_decoder(state):
    """Latents to images in [0, 1]; layer 0, a clamp, and 2, a ReLU, have no weights."""
    state = dict(state)
    layers = [Clamp(), conv(state, "1"), nn.ReLU()]
    for first in (3, 8, 13):
        layers += [Block(state, f"{first + k}") for k in range(3)]
        layers += [nn.Upsample(scale_factor=2), conv(state, f"{first + 4}")]
    layers += [Block(state, "18"), conv(state, "19")]
    assert not state, "a tensor was left over"
    return nn.Sequential(*layers)


@pytest.fixture
def taesd():
    """Random weights in TAESD's sizes, with biases that are not zero."""
    torch.manual_seed(1)
    vae = AutoencoderTiny()
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
    return vae


def original_states(vae):
    """A diffusers autoencoder's tensors under the names of the original files."""
    states = {"encoder": {}, "decoder": {}}
    for key, value in vae.state_dict().items():
        part, _, layer, rest = key.split(".", 3)
        number = int(layer) + (1 if part == "decoder" else 0)
        states[part][f"{number}.{rest}"] = value
    assert "0.weight" in states["encoder"] and "1.weight" in states["decoder"]
    assert not any(key.startswith("0.") for key in states["decoder"])
    return states


def write_original(folder, vae, suffix=".safetensors", family="taesd"):
    folder.mkdir(parents=True, exist_ok=True)
    for part, state in original_states(vae).items():
        path = folder / f"{family}_{part}{suffix}"
        if suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)
    return folder


def refusal(where):
    with pytest.raises(InputError) as error:
        load_autoencoder(where)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def no_hub(monkeypatch):
    """Any look-up by diffusers is noted and fails."""
    calls = []

    def refuse(where, **options):
        calls.append((where, options))
        raise OSError("We couldn't connect to the hub.\nCheck your connection\nor so.")

    for asked in ("from_pretrained", "load_config"):
        monkeypatch.setattr(module.AutoencoderTiny, asked, refuse)
    return calls


def test_sizes_are_those_of_the_paper(taesd):
    assert sum(p.numel() for p in taesd.encoder.parameters()) == 1_222_532
    assert sum(p.numel() for p in taesd.decoder.parameters()) == 1_222_531


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("family", ["taesd", "taesdxl"])
def test_original_files_are_converted(taesd, tmp_path, family, suffix):
    loaded = load_autoencoder(write_original(tmp_path, taesd, suffix, family))
    assert loaded.state_dict().keys() == taesd.state_dict().keys()
    for key, value in taesd.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@torch.no_grad()
def assert_equals_original(vae, encoder_state, decoder_state, side=32):
    encoder, decoder = original_encoder(encoder_state), original_decoder(decoder_state)
    images = torch.rand(2, 3, side, side)
    latents = encoder(images)
    torch.testing.assert_close(encode_images(vae, images), latents, rtol=1e-4, atol=1e-4)
    # ten times wider than latents are, so that the clamp matters
    for values in (latents, 10 * torch.randn_like(latents)):
        decoded = vae.decode(values).sample
        torch.testing.assert_close((decoded + 1) / 2, decoder(values), rtol=1e-4, atol=1e-4)
        mask = decoder(values).mean(1, keepdim=True).clamp(0, 1)
        torch.testing.assert_close(decode_masks(vae, values), mask, rtol=1e-4, atol=1e-4)


def test_converted_weights_compute_what_the_original_network_does(taesd, tmp_path):
    loaded = load_autoencoder(write_original(tmp_path, taesd))
    states = original_states(taesd)
    assert_equals_original(loaded, states["encoder"], states["decoder"])


def test_a_layout_with_a_middle_block_computes_what_its_tensors_say(tmp_path):
    torch.manual_seed(2)
    vae = MidBlockAutoencoderTiny()
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
    states = original_states(vae)
    loaded = load_autoencoder(write_original(tmp_path, vae, ".pth", "taef2"))
    assert_equals_original(loaded, states["encoder"], states["decoder"])
    assert sum(p.numel() for p in loaded.encoder.parameters()) == 1_338_528
    assert sum(p.numel() for p in loaded.decoder.parameters()) == 1_338_499


@pytest.mark.parametrize("family", ["taesd3", "taef1"])
def test_originals_of_sixteen_channels_are_converted(tmp_path, family):
    torch.manual_seed(3)
    vae = AutoencoderTiny(latent_channels=16)
    loaded = load_autoencoder(write_original(tmp_path, vae, family=family))
    assert latent_channels_of(loaded) == 16
    states = original_states(vae)
    assert_equals_original(loaded, states["encoder"], states["decoder"])


@pytest.mark.parametrize(("named", "held"), [("taef2", "taesd"), ("taesd", "taef2")])
def test_files_under_the_name_of_another_autoencoder_are_refused(tmp_path, named, held):
    vae = {"taesd": AutoencoderTiny, "taef2": MidBlockAutoencoderTiny}[held]()
    message = refusal(write_original(tmp_path, vae, family=named))
    assert str(tmp_path / f"{named}_encoder") in message and named.upper() in message


@pytest.mark.realdata
@pytest.mark.parametrize("family", ["taesd", "taesdxl", "taef2"])
def test_real_weights_compute_what_the_original_network_does(real_data, family):
    folder = real_data / "models" / f"{family}_original"
    states = [
        read_tensors(next(folder.glob(f"{family}_{part}.*"))) for part in ("encoder", "decoder")
    ]
    assert_equals_original(load_autoencoder(folder), *states, side=64)


@pytest.mark.realdata
def test_real_taesd_gives_busi_masks_back(real_data):
    vae = load_autoencoder(real_data / "models" / "taesd_original")
    root = real_data / "data" / "raw" / "busi" / "Dataset_BUSI_with_GT"
    paths = [*sorted(root.glob("benign/*_mask.png"))[:4]]
    paths += sorted(root.glob("malignant/*_mask.png"))[:4]
    masks = [resize_mask(mask_values(Image.open(path))[0] > 0, 224) for path in paths]
    assert len(masks) == 8 and all(mask.any() for mask in masks)
    batch = torch.from_numpy(np.stack(masks)).float()[:, None]
    with torch.no_grad():
        decoded = decode_masks(vae, encode_masks(vae, batch))[:, 0].numpy() >= 0.5
    dice = [
        2 * (mask & result).sum() / (mask.sum() + result.sum())
        for mask, result in zip(masks, decoded, strict=True)
    ]
    assert np.mean(dice) > 0.99
    assert min(dice) > 0.97  # a lesion of 14 x 14 pixels, a quarter of them on its border


@pytest.mark.parametrize("shift", [None, 0.0609])
def test_a_folder_of_any_known_class_is_loaded(tmp_path, shift):
    """Saved and opened as the class that its config.json names, SD3's shift of latents included."""
    kl = build_kl(latent_channels=16, shift_factor=shift, scaling_factor=1.5305)
    for number, vae in enumerate([kl, MidBlockAutoencoderTiny(32, 8, 1)]):
        folder = tmp_path / str(number)
        vae.save_pretrained(folder)
        loaded = load_autoencoder(folder)
        assert type(loaded) is type(vae)
        images = torch.rand(1, 3, 16, 16)
        with torch.no_grad():
            latents, expected = encode_images(loaded, images), freeze(vae).encode(2 * images - 1)
            painted = decode_latents(loaded, latents)
            own = vae.decode(expected[0] if number else expected.latent_dist.mode()).sample
        torch.testing.assert_close(painted, own, rtol=1e-4, atol=1e-5)
        if number == 0:
            raw = expected.latent_dist.mode()
            torch.testing.assert_close(latents, (raw - (shift or 0)) * 1.5305)


def test_a_diffusers_folder_is_loaded(small_vae, tmp_path):
    small_vae.save_pretrained(tmp_path)
    for where in (tmp_path, str(tmp_path)):
        loaded = load_autoencoder(where)
        assert tuple(loaded.config.encoder_block_out_channels) == (16,) * 4
        for key, value in small_vae.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize("form", ["diffusers", "original"])
def test_whatever_is_loaded_is_frozen_float32(taesd, tmp_path, form):
    taesd.train().half()
    if form == "diffusers":
        taesd.save_pretrained(tmp_path)
    else:
        write_original(tmp_path, taesd)
    loaded = load_autoencoder(tmp_path)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.parameters())
    assert not any(part.training for part in loaded.modules())
    decoded = decode_masks(loaded, torch.randn(1, 4, 2, 2, requires_grad=True))
    assert decoded.requires_grad  # the latents still get gradients


def test_freeze_leaves_nothing_to_train():
    vae = build_autoencoder(16, 1).train()
    assert freeze(vae) is vae
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())


def test_masks_are_encoded_as_grey_images_in_the_right_range(small_vae):
    seen = []
    small_vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    masks = torch.tensor([0.0, 1.0]).repeat_interleave(256).reshape(2, 1, 16, 16)
    latents = encode_masks(small_vae, masks)
    assert torch.equal(seen[0], (2 * masks - 1).repeat(1, 3, 1, 1))
    assert torch.equal(latents, encode_images(small_vae, masks.repeat(1, 3, 1, 1)))


def test_a_missing_folder_is_refused_by_name(tmp_path, no_hub):
    missing = tmp_path / "nowhere"
    for where in (missing, str(missing)):
        message = refusal(where)
        assert str(missing) in message and "does not exist" in message
    assert not no_hub


def test_an_empty_folder_is_refused_by_name(tmp_path, no_hub):
    message = refusal(tmp_path)
    assert str(tmp_path) in message and "config.json" in message and not no_hub


def test_half_a_pair_is_no_autoencoder(taesd, tmp_path):
    write_original(tmp_path, taesd)
    (tmp_path / "taesd_decoder.safetensors").unlink()
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(taesd, tmp_path, suffix, part, kept):
    write_original(tmp_path, taesd, suffix)
    path = tmp_path / f"taesd_{part}{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    assert str(path) in refusal(tmp_path)


class Bomb:
    """Unpickling this makes a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        import os

        return os.mkdir, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_pickle_bomb_does_not_go_off(taesd, tmp_path, legacy, inside):
    target = tmp_path / "executed"
    folder = write_original(tmp_path / "weights", taesd, ".pth")
    path = folder / "taesd_decoder.pth"
    payload = Bomb(target)
    if inside:
        payload = original_states(taesd)["decoder"] | {"bomb": payload}
    if legacy and not inside:
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    assert str(path) in refusal(folder)
    assert not target.exists()
    with suppress(RuntimeError, AttributeError, pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert target.exists(), "it is no bomb"


@pytest.mark.parametrize(
    "content", [[1, 2], {"0.weight": "text"}, {"model": {"0.weight": torch.zeros(1)}}]
)
def test_a_file_that_holds_no_plain_tensors_is_refused_by_name(taesd, tmp_path, content):
    write_original(tmp_path, taesd, ".pth")
    torch.save(content, tmp_path / "taesd_encoder.pth")
    assert str(tmp_path / "taesd_encoder.pth") in refusal(tmp_path)


def test_other_key_names_are_refused_by_name(taesd, tmp_path):
    write_original(tmp_path, taesd, ".pth")
    for key in ("encoder.layers.0.weight", "weight", "0", 0, "x.weight"):
        torch.save({key: torch.zeros(1)}, tmp_path / "taesd_encoder.pth")
        message = refusal(tmp_path)
        assert str(tmp_path / "taesd_encoder.pth") in message and str(key) in message


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused_by_name(taesd, tmp_path, part, change):
    write_original(tmp_path, taesd)
    path = tmp_path / f"taesd_{part}.safetensors"
    state = load_file(path)
    key = "8.conv.2.weight" if part == "encoder" else "9.conv.2.weight"
    if change == "missing":
        del state[key]
    elif change == "unknown":
        state["77.weight"] = torch.zeros(3)
    else:
        state[key] = state[key][:32].clone()
    save_file(state, path)
    message = refusal(tmp_path)
    assert str(path) in message and "shape" in message


def test_encoder_and_decoder_swapped_are_refused(taesd, tmp_path):
    write_original(tmp_path, taesd)
    encoder, decoder = (tmp_path / f"taesd_{p}.safetensors" for p in ("encoder", "decoder"))
    encoder.rename(tmp_path / "x")
    decoder.rename(encoder)
    (tmp_path / "x").rename(decoder)
    assert "does not fit TAESD" in refusal(tmp_path)


@pytest.mark.parametrize("change", ["missing", "unexpected", "truncated", "no weights", "pickle"])
def test_a_damaged_diffusers_folder_is_refused_by_name(small_vae, tmp_path, change):
    small_vae.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    state = load_file(path)
    if change == "missing":
        del state["decoder.layers.0.weight"]
        save_file(state, path)
    elif change == "unexpected":
        save_file(state | {"decoder.layers.99.weight": torch.zeros(1)}, path)
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.unlink()
        if change == "pickle":
            torch.save(state, path.with_suffix(".bin"))
    assert str(tmp_path) in refusal(tmp_path)


def test_a_broken_config_is_refused_by_name(small_vae, tmp_path):
    small_vae.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert str(tmp_path) in refusal(tmp_path)


def test_a_path_never_goes_to_the_hub(tmp_path, monkeypatch, no_hub):
    monkeypatch.chdir(tmp_path)
    assert "madebyollin/taesd does not exist" in refusal(tmp_path.__class__("madebyollin/taesd"))
    assert not no_hub


def test_a_string_that_cannot_be_a_hub_id_does_not_go_there(tmp_path, monkeypatch, no_hub):
    monkeypatch.chdir(tmp_path)
    for where in ("taesd", "models/taesd/original", "", "/models/taesd", "a b/c", "a/b?c"):
        refusal(where)
        assert not no_hub, where


def test_a_folder_of_that_name_goes_before_the_hub(taesd, tmp_path, monkeypatch, no_hub):
    monkeypatch.chdir(tmp_path)
    write_original(tmp_path / "madebyollin" / "taesd", taesd)
    load_autoencoder("madebyollin/taesd")
    assert not no_hub


def test_a_hub_id_is_asked_of_diffusers_as_safetensors_only(tmp_path, monkeypatch, small_vae):
    monkeypatch.chdir(tmp_path)
    real, calls = AutoencoderTiny.from_pretrained, []
    small_vae.save_pretrained(tmp_path / "elsewhere")
    config = AutoencoderTiny.load_config
    here = str(tmp_path / "elsewhere")
    monkeypatch.setattr(
        AutoencoderTiny, "load_config", lambda _, **options: config(here, **options)
    )

    def from_pretrained(where, **options):
        calls.append((where, options.get("use_safetensors")))
        return real(tmp_path / "elsewhere", **options)

    monkeypatch.setattr(module.AutoencoderTiny, "from_pretrained", from_pretrained)
    loaded = load_autoencoder("madebyollin/taesd")
    assert calls == [("madebyollin/taesd", True)]
    assert not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.encoder.layers[0].weight, small_vae.encoder.layers[0].weight)


def test_a_failing_hub_is_one_sentence(tmp_path, monkeypatch, no_hub):
    monkeypatch.chdir(tmp_path)
    message = refusal("madebyollin/taesd")
    assert no_hub == [("madebyollin/taesd", no_hub[0][1])]
    assert "madebyollin/taesd" in message and "couldn't connect" in message
    assert "autoencoder.source" in message


def test_offline_is_one_sentence(tmp_path, monkeypatch):
    """Through the real libraries, with the hub switched off."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal("nobody/no-such-autoencoder")
    assert "nobody/no-such-autoencoder" in message and "autoencoder.source" in message


def test_loading_changes_no_file(taesd, tmp_path):
    write_original(tmp_path, taesd, ".pth")
    before = tree(tmp_path)
    load_autoencoder(tmp_path)
    assert tree(tmp_path) == before


_SMALL = {
    "encoder_block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (8,) * 4,
    "num_encoder_blocks": (1,) * 4,
    "num_decoder_blocks": (1,) * 4,
}


def of_levels(count):
    return {name: values[:1] * count for name, values in _SMALL.items()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (of_levels(3), "latents at 1/4 of the sides"),
        (of_levels(5), "latents at 1/16"),
        ({"latent_channels": 32} | of_levels(6), "latents at 1/32"),
        ({"in_channels": 1, "out_channels": 1}, "is not one of RGB images"),
        ({"in_channels": 4, "out_channels": 4}, "is not one of RGB images"),
        ({"out_channels": 1}, "is not one of RGB images"),
    ],
)
def test_other_latents_are_refused_where_they_are_loaded(tmp_path, changes, said):
    AutoencoderTiny(**_SMALL | changes).save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match=f"{tmp_path / 'vae'} .*{said}.* choose another auto"):
        load_autoencoder(tmp_path / "vae")
    for channels in (4, 8, 16):
        AutoencoderTiny(**_SMALL, latent_channels=channels).save_pretrained(tmp_path / "fits")
        assert load_autoencoder(tmp_path / "fits").config.latent_channels == channels
