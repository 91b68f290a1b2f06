"""The diagram's shapes and counts are those of the networks, and it can be read."""

import re

import numpy as np
import pytest
import torch
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

from wavegms import WaveGMSPipeline
from wavegms.errors import InputError
from wavegms.figures.diagram import draw_method
from wavegms.figures.style import save_figure
from wavegms.models.wavelet import multi_level_bands

pytestmark = pytest.mark.filterwarnings("error")

SIZES = [(32, 32), (64, 48), (224, 224)]


@pytest.fixture(scope="module")
def draw(untrained):
    """A maker of images and diagrams, each drawn once."""
    made = {}

    def make(size):
        if size not in made:
            image = torch.rand(1, 3, *size)
            mask = (torch.rand(1, 1, *size) > 0.5).float()
            made[size] = image, draw_method(untrained, image, mask)
        return made[size]

    return make


def labels(figure):
    """What is written, by gid."""
    found = {}
    for text in figure.findobj(Text):
        if text.get_gid():
            found.setdefault(text.get_gid(), set()).add(text.get_text())
    return found


def shape_of(tensor):
    return {" × ".join(map(str, tensor.shape[1:]))}


@pytest.mark.parametrize("size", SIZES)
def test_every_shape_is_that_of_a_forward_pass(untrained, draw, size):
    image, figure = draw(size)
    written = {gid: words for gid, words in labels(figure).items() if "parameters" not in gid}
    outputs = {}
    parts = {"encoder": untrained.encoder, "mapping": untrained.mapping, "vae": untrained.vae}
    handles = [
        module.register_forward_hook(
            lambda _, given, result, name=f"{part}.{path}": outputs.update({name: result})
        )
        for part, network in parts.items()
        for path, module in network.named_modules()
    ]
    with torch.inference_mode():
        z = untrained.encoder(image)
        levels = untrained.mapping(z)
        mask = untrained.vae.decode(levels[-1]).sample.mean(1, keepdim=True)
    for handle in handles:
        handle.remove()
    expected = {
        "image": image,
        "mask": mask,
        "prediction": mask,
        "z_MR": z,
        "z_I": untrained.vae.encode(image).latents,
        "z_M": untrained.vae.encode(mask.repeat(1, 3, 1, 1)).latents,
        "concatenated": torch.zeros(1, 36, *z.shape[2:]),
    }
    for level, bands in enumerate(multi_level_bands(image), 1):
        expected[f"bands_{level}"] = bands
    modules = [f"encoder.feature_extraction.{level}" for level in range(3)]
    modules += ["encoder.pools.0", "encoder.pools.1", "encoder.feature_aggregation"]
    modules += ["mapping.conv_in", *(f"mapping.encoder.{block}" for block in range(4))]
    modules += [f"mapping.{part}.{block}" for part in ("decoder", "heads") for block in range(4)]
    expected |= {name: outputs[name] for name in modules}
    assert written == {name: shape_of(tensor) for name, tensor in expected.items()}


def test_every_count_is_that_of_the_weights(untrained, draw):
    _, figure = draw((32, 32))
    counted = {
        gid.removeprefix("parameters of "): words
        for gid, words in labels(figure).items()
        if gid.startswith("parameters of ")
    }
    for path, words in counted.items():
        part, _, rest = path.partition(".")
        module = getattr(untrained, part).get_submodule(rest)
        (number,) = {int(re.findall(r"\d[\d,]*", word)[-1].replace(",", "")) for word in words}
        assert number == sum(p.numel() for p in module.parameters()), path
    # the blocks of a part are all of it
    for part, whole in (("encoder.", 1_035_692), ("mapping.", 1_564_976)):
        sizes = [words for path, words in counted.items() if path.startswith(part)]
        numbers = [int(re.findall(r"\d[\d,]*", min(s))[-1].replace(",", "")) for s in sizes]
        assert sum(numbers) == whole
        assert f"{whole:,} parameters" in counted[part[:-1]]
    assert {"vae.encoder", "vae.decoder"} < set(counted)
    (total,) = labels(figure)["parameters trained"]
    assert "2,600,668" in total


@pytest.mark.parametrize("size", SIZES)
def test_no_text_overlaps_another_or_leaves_its_block(draw, size):
    _, figure = draw(size)
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts]
    blocks = [
        patch.get_window_extent()
        for patch in figure.axes[0].patches
        if isinstance(patch, FancyBboxPatch)
    ]
    pictures = [image.get_window_extent() for image in figure.axes[0].images]
    for number, (words, box) in enumerate(boxes):
        assert figure.bbox.x0 < box.x0 and box.x1 < figure.bbox.x1, words
        assert figure.bbox.y0 < box.y0 and box.y1 < figure.bbox.y1, words
        for other, taken in boxes[:number]:
            assert not box.overlaps(taken), (words, other)
        for block in blocks + pictures:
            inside = (
                block.x0 <= box.x0
                and box.x1 <= block.x1
                and block.y0 <= box.y0
                and box.y1 <= block.y1
            )
            assert inside or not box.overlaps(block), words
    assert min(text.get_fontsize() for text in figure.axes[0].texts) >= 5.5
    assert figure.get_figwidth() <= 7.3


def test_pictures_are_the_image_and_the_masks(untrained, draw):
    image, figure = draw((64, 48))
    shown = [np.asarray(picture.get_array()) for picture in figure.axes[0].images]
    assert len(shown) == 1 + 3 + 4 + 1
    np.testing.assert_array_equal(shown[0], image[0].movedim(0, -1))
    low = multi_level_bands(image)[0][0, :3].movedim(0, -1)
    np.testing.assert_allclose(shown[1][:32, :24], low, atol=1e-4)
    # in another order of memory, where an untrained network makes much of other rounding
    np.testing.assert_allclose(shown[7], untrained.predict(image)[0, 0], atol=1e-4)
    for picture in figure.axes[0].images:
        left, right, bottom, top = picture.get_extent()
        assert (top - bottom) / (right - left) == pytest.approx(64 / 48)


def test_it_prints_as_vectors_and_the_same_each_time(untrained, tmp_path):
    image, mask = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    for folder in ("once", "again"):
        written = save_figure(draw_method(untrained, image, mask), tmp_path / folder / "method")
    for path in written:
        assert path.read_bytes() == (tmp_path / "once" / path.name).read_bytes()


def test_a_pipeline_without_wavelets_is_refused(untrained):
    other = WaveGMSPipeline(None, untrained.mapping, untrained.vae, image_size=32)
    with pytest.raises(InputError, match="no wavelet encoder: draw it from the variant wave_gms"):
        draw_method(other, torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32))
