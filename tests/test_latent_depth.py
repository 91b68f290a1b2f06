"""Latents of any depth: what is built, trained, saved and opened around an autoencoder follows."""

import json
from types import SimpleNamespace

import pytest
import torch
from runs import make_run
from safetensors.torch import load_file
from short import shorten
from test_autoencoder import original_states, write_original
from test_variants import build_kl

from wavegms import InputError, WaveGMSPipeline, load_autoencoder
from wavegms.data.batches import Augmentation
from wavegms.data.on_card import CardBatches
from wavegms.models.autoencoder import decode_masks, encode_masks, freeze, latent_channels_of
from wavegms.models.build import as_pipeline, build_variant, require_autoencoder
from wavegms.models.fused import through
from wavegms.models.mask_decoder import MaskDecoder, kept_mask_decoder
from wavegms.models.mid_block import MidBlockAutoencoderTiny
from wavegms.training.autoencoder import build_autoencoder, reconstruction_quality
from wavegms.training.kept import start_network
from wavegms.training.loss import WaveGMSLoss
from wavegms.training.recipe import loss_terms, train
from wavegms.variants import VARIANTS, variant_spec

SIDE = 32


def shaped(channels):
    """What of an autoencoder shapes a network."""
    return SimpleNamespace(config=SimpleNamespace(latent_channels=channels))


def autoencoder_of(channels):
    """A small frozen one, each depth of another kind: TAESD's, an `AutoencoderKL`, TAEF2's."""
    torch.manual_seed(channels)
    if channels == 4:
        return freeze(build_autoencoder(8, 1))
    if channels == 16:
        return freeze(build_kl(latent_channels=16, shift_factor=0.1, scaling_factor=0.4))
    return freeze(MidBlockAutoencoderTiny(32, 8, 1))


@pytest.fixture(params=[4, 16, 32])
def vae(request):
    return autoencoder_of(request.param)


def batch():
    masks = torch.zeros(2, 1, SIDE, SIDE)
    masks[:, :, 8:20, 10:28] = 1
    return torch.rand(2, 3, SIDE, SIDE), masks


def sizes(name, channels):
    with torch.device("meta"):
        model = build_variant(name, vae=shaped(channels))
    return sum(parameter.numel() for parameter in model.parameters())


def test_four_channels_are_what_the_paper_has_and_others_add_only_the_ends():
    """First and last convolutions: 9 weights for a pair of channels, and the encoder's biases."""
    assert sizes("wave_gms", 4) == 2_600_668
    for channels in (16, 32):
        more = channels - 4
        # mean and log-variance leave an aggregation of 16 channels
        encoder = 2 * more * (9 * 16 + 1)
        mapping = more * 9 * (32 + 128 + 64 + 32 + 32)
        assert sizes("wave_gms", channels) == 2_600_668 + encoder + mapping
        assert sizes("tinyvae", channels) == 1_564_976 + mapping
        assert sizes("unet", channels) == sizes("unet", 4)


@pytest.mark.parametrize("name", ["wave_gms", "wave_gms_no_alignment", "tinyvae_multires_sft"])
def test_a_step_is_that_of_the_plain_formulas_at_any_depth(vae, name):
    spec, channels = variant_spec(name), latent_channels_of(vae)
    model = build_variant(name, vae=shaped(channels)).eval()
    images, masks = batch()
    terms = loss_terms(spec, model, WaveGMSLoss(), vae, images, masks)
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.mapping.parameters())
    latents, levels = model(images, vae)
    assert [level.shape for level in levels] == [(2, channels, SIDE // 8, SIDE // 8)] * 4
    plain = WaveGMSLoss().plain(latents if spec.aligned else None, levels, vae, images, masks)
    for name, value in plain.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)


def test_a_model_of_any_depth_is_trained_saved_and_opened(
    vae, train_set, validation_set, training_params, tmp_path
):
    sets = {"train_set": train_set, "selection_set": validation_set}
    run = make_run(tmp_path, *sets.values(), training_params(), vae=vae)
    result = train(run)
    opened = WaveGMSPipeline.from_pretrained(result.folder / "best")
    channels = latent_channels_of(vae)
    assert type(opened.vae) is type(vae)
    assert opened.mapping.config.latent_channels == channels
    assert opened.encoder.config.latent_channels == channels
    assert result.trainable_parameters == sizes("wave_gms", channels)
    assert opened.parameter_counts.total == result.trainable_parameters + vae.num_parameters()
    images = train_set.to_float(train_set.images)
    saved = load_file(result.folder / "best/vae/diffusion_pytorch_model.safetensors")
    for key, value in vae.state_dict().items():
        assert torch.equal(saved[key], value), key
    assert opened.predict(images).shape == (len(images), 1, *images.shape[2:])
    other = autoencoder_of({4: 32, 16: 4, 32: 16}[channels])
    with pytest.raises(InputError, match="trained with another autoencoder"):
        start_network(str(result.folder / "best"), "wave_gms", other)
    network = start_network(str(result.folder / "best"), "wave_gms", vae)
    assert network.mapping.config.latent_channels == channels


def test_parts_of_different_depths_are_refused(tmp_path):
    vae, model = autoencoder_of(32), build_variant("wave_gms")
    with pytest.raises(InputError, match="latents of 4 channels, and the autoencoder's have 32"):
        as_pipeline(model, vae, SIDE)
    as_pipeline(model, autoencoder_of(4), SIDE).save_pretrained(tmp_path / "model")
    vae.save_pretrained(tmp_path / "model/vae")
    index = tmp_path / "model/model_index.json"
    values = json.loads(index.read_text()) | {
        "vae": [MidBlockAutoencoderTiny.__module__, "MidBlockAutoencoderTiny"]
    }
    index.write_text(json.dumps(values))
    with pytest.raises(InputError, match="latents of 4 channels"):
        WaveGMSPipeline.from_pretrained(tmp_path / "model")


def test_weights_of_gms_need_four_channels():
    (name,) = [name for name, spec in VARIANTS.items() if not spec.trained]
    require_autoencoder(name, autoencoder_of(4))
    with pytest.raises(InputError, match=f"{name} has GMS's weights for latents of 4 channels.*16"):
        require_autoencoder(name, autoencoder_of(16))


def test_a_mask_decoder_is_of_one_depth(vae):
    decoder = MaskDecoder.untrained(vae)
    latents = encode_masks(vae, batch()[1])
    assert decoder(latents).shape == decode_masks(vae, latents).shape
    assert decoder.fits(vae)
    for channels in {4, 16, 32} - {latent_channels_of(vae)}:
        assert not decoder.fits(autoencoder_of(channels))
    with pytest.raises(InputError, match="was taught by this autoencoder"):
        kept_mask_decoder(vae)


def test_noise_on_a_card_has_the_depth_of_the_latents(vae, train_set):
    channels = latent_channels_of(vae)
    nothing = Augmentation(0, 0, 0, 0, 0)
    options = {"batch_size": 2, "seed": 1, "device": torch.device("cpu")}
    batches = CardBatches(train_set, nothing, **options, latent_channels=channels)
    first = next(iter(batches.epoch(0)))
    model = build_variant("wave_gms", vae=shaped(channels)).train()
    latents, _ = model(first.images, vae, first.generators)
    assert first.generators.shape == latents.shape
    if channels == 4:
        same = next(iter(CardBatches(train_set, nothing, **options).epoch(0)))
        assert torch.equal(same.generators, first.generators)


def test_repainting_is_measured_at_any_depth(vae, train_set):
    quality = reconstruction_quality(vae, train_set)
    assert quality.images == len(train_set) and 0 <= quality.mask_dice <= 1


def test_a_cards_way_through_the_layers_leaves_no_middle_block_out():
    """On a processor, where the same functions run."""
    vae, images = autoencoder_of(32), batch()[0]
    with torch.no_grad():
        latents = vae.encode(2 * images - 1).latents
        torch.testing.assert_close(through(vae.encoder.layers, images), latents)
        decoded = through(vae.decoder.layers, torch.tanh(latents / 3) * 3)
        torch.testing.assert_close(2 * decoded - 1, vae.decode(latents).sample)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [16, 32])
def test_an_onnx_file_gives_the_same_at_any_depth(tmp_path, channels):
    vae = autoencoder_of(channels)
    network = build_variant("wave_gms", vae=shaped(channels))
    shorten(network)
    pipeline = as_pipeline(network, vae, SIDE)
    assert pipeline.export_onnx(tmp_path / "model.onnx").max_difference < 1e-3


def test_a_saved_autoencoder_with_a_middle_block_is_as_safe_as_others(tmp_path):
    folder = write_original(tmp_path / "original", MidBlockAutoencoderTiny(), family="taef2")
    vae = load_autoencoder(folder)
    vae.save_pretrained(tmp_path / "saved")
    again = load_autoencoder(tmp_path / "saved")
    for part, state in original_states(again).items():
        for key, value in original_states(vae)[part].items():
            assert torch.equal(state[key], value)
    config = tmp_path / "saved/config.json"
    for change, said in (({"channels": 10**6}, "too large"), ({"blocks": 2}, "does not fit")):
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
        with pytest.raises(InputError, match=said):
            load_autoencoder(tmp_path / "saved")
        vae.save_pretrained(tmp_path / "saved")
