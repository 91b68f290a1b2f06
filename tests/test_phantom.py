"""The simulated sample: reproducible, laid out as published, and ultrasound in its physics."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from wavegms.errors import InputError
from wavegms.phantom import scanner as phantom
from wavegms.phantom.scanner import (
    SCANNERS,
    complex_noise,
    envelope,
    point_spread,
    round_trip_loss_db,
    simulate,
    write_phantoms,
)
from wavegms.phantom.tissue import ANGLES, Beams, Lesion, Tissue, add_lesions

BEAMS = Beams.cover((180, 200), depth_mm=36.0, trapezoid_deg=0.0)


@pytest.fixture(scope="module")
def cases():
    return {name: [simulate(s, 7, i) for i in range(30)] for name, s in SCANNERS.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    for name in SCANNERS:
        write_phantoms(name, root / name, count=26, seed=7)
    return root


def uniform_tissue(attenuation=0.5):
    shape = BEAMS.z.shape
    return Tissue(
        echo_db=np.zeros(shape, np.float32),
        attenuation=np.full(shape, attenuation, np.float32),
        reflector=np.zeros(shape, np.complex64),
        shadow_db=np.zeros(shape, np.float32),
    )


def speckle(scanner, seed=0):
    noise = complex_noise(np.random.default_rng(seed), BEAMS.z.shape)
    return np.abs(point_spread(noise, scanner, BEAMS))


def correlation_mm(values, axis):
    """Lag in mm at which the autocorrelation along an axis falls to one half."""
    values = values - values.mean()
    size = values.shape[axis]
    curve = [
        np.mean(np.take(values, range(size - lag), axis) * np.take(values, range(lag, size), axis))
        for lag in range(20)
    ]
    curve = np.array(curve) / curve[0]
    first = int(np.argmax(curve < 0.5))
    share = (curve[first - 1] - 0.5) / (curve[first - 1] - curve[first])
    return (first - 1 + share) * BEAMS.step_mm


def tree(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", SCANNERS)
def test_same_seed_same_case_whatever_came_before(name, cases):
    again = simulate(SCANNERS[name], 7, 17)
    first = cases[name][17]
    assert np.array_equal(again.image, first.image)
    assert len(again.masks) == len(first.masks)
    assert all(np.array_equal(a, b) for a, b in zip(again.masks, first.masks, strict=True))
    assert again.label == first.label


@pytest.mark.parametrize("name", SCANNERS)
def test_seeds_and_indices_differ(name, cases):
    images = [c.image for c in cases[name]] + [simulate(SCANNERS[name], 4, 0).image]
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("name", SCANNERS)
def test_files_do_not_depend_on_the_count(name, folders, tmp_path):
    write_phantoms(name, tmp_path / "few", count=4, seed=7)
    few, many = tree(tmp_path / "few"), tree(folders / name)
    pictures = {path: data for path, data in few.items() if path.suffix == ".png"}
    assert len(pictures) >= 8
    assert all(many[path] == data for path, data in pictures.items())


@pytest.mark.parametrize("name", SCANNERS)
def test_masks_are_lesions_of_plausible_area_and_disjoint(name, cases):
    for case in cases[name]:
        assert case.image.dtype == np.uint8
        assert case.image.ndim == 2
        assert (len(case.masks) == 0) == (case.label == "normal")
        for mask in case.masks:
            assert mask.dtype == bool
            assert mask.shape == case.image.shape
            assert 0.015 < mask.mean() < 0.27
        assert np.sum(case.masks, axis=0).max(initial=0) <= 1
    assert any(len(case.masks) == 2 for case in cases[name])
    labels = Counter(case.label for case in cases[name])
    assert labels["benign"] > labels["malignant"] > 3
    assert labels["normal"] == (2 if name == "phantom_b" else 0)


@pytest.mark.parametrize("name", SCANNERS)
def test_lesions_are_darker_than_tissue_at_the_same_depth(name, cases):
    darker = []
    for case in cases[name]:
        lesions = np.any(case.masks, axis=0)
        for mask in case.masks:
            ring = binary_dilation(mask, iterations=12) & ~binary_dilation(lesions, iterations=3)
            ring &= mask.any(axis=1)[:, None] & (case.image > 0)
            darker.append(case.image[mask].mean() < 0.85 * case.image[ring].mean())
    assert np.mean(darker) >= 0.85


def test_scanner_geometry(cases):
    assert len({case.image.shape for case in cases["phantom_a"]}) == 1
    assert len({case.image.shape for case in cases["phantom_b"]}) > 20
    upper_corner = [case.image[:12, :2].max() for case in cases["phantom_b"]]
    assert np.mean(np.equal(upper_corner, 0)) > 0.8
    assert all(case.image[:12, :2].max() > 0 for case in cases["phantom_a"])


def test_envelope_of_uniform_tissue_is_rayleigh_distributed():
    for scanner in SCANNERS.values():
        ratios = [np.mean(e := speckle(scanner, seed)) / np.std(e) for seed in range(4)]
        assert np.mean(ratios) == pytest.approx(1.913, abs=0.06)


def test_point_spread_keeps_the_power_of_white_scatterers():
    for scanner in SCANNERS.values():
        power = np.mean([np.mean(speckle(scanner, seed) ** 2) for seed in range(4)])
        assert power == pytest.approx(1.0, abs=0.08)


def test_speckle_is_coarser_laterally_and_differs_between_scanners():
    width = {}
    for name, scanner in SCANNERS.items():
        near_focus = speckle(scanner)[60:130]
        width[name] = correlation_mm(near_focus, axis=1)
        assert width[name] > 1.4 * correlation_mm(near_focus, axis=0)
    assert width["phantom_b"] > 1.3 * width["phantom_a"]


def test_speckle_widens_away_from_the_focus():
    scanner = replace(SCANNERS["phantom_b"], focus_mm=6.0)
    field = speckle(scanner)
    assert correlation_mm(field[130:], axis=1) > 1.5 * correlation_mm(field[10:60], axis=1)


def test_loss_grows_by_twice_attenuation_times_frequency_per_cm():
    scanner = SCANNERS["phantom_a"]
    loss = round_trip_loss_db(uniform_tissue(0.5), scanner, BEAMS)
    per_cm = (loss[150] - loss[50]) / (100 * BEAMS.step_mm / 10)
    assert per_cm == pytest.approx(2 * 0.5 * scanner.frequency_mhz, rel=1e-3)


def test_echo_fades_with_depth_unless_gain_makes_up_for_it():
    attenuation = 0.5
    base = replace(SCANNERS["phantom_b"], noise_db=-300.0)
    fall = {}
    for assumed in (0.0, attenuation):
        scanner = replace(base, tgc_db=(assumed, assumed))
        amplitude = envelope(np.random.default_rng(5), uniform_tissue(attenuation), scanner, BEAMS)
        fall[assumed] = 20 * np.log10(amplitude[20:50].mean() / amplitude[120:150].mean())
    # 20 mm deeper at 7 MHz; the gain sliders wobble by a few dB either way.
    assert fall[0.0] == pytest.approx(2 * attenuation * 7 * 2.0, abs=5.5)
    assert fall[attenuation] == pytest.approx(0.0, abs=5.5)


@pytest.mark.parametrize(("kind", "sign"), [("cyst", -1), ("malignant", 1)])
def test_cyst_enhances_and_malignant_lesion_shadows(kind, sign):
    lesion = Lesion(kind=kind, x=0.0, z=14.0, radius_mm=np.full(ANGLES.shape, 5.0))
    tissue = add_lesions(np.random.default_rng(0), uniform_tissue(), (lesion,), BEAMS)
    loss = round_trip_loss_db(tissue, SCANNERS["phantom_a"], BEAMS)
    behind = BEAMS.z[:, 0] > 22
    excess = loss[behind][:, 90:110].mean() - loss[behind][:, 5:25].mean()
    assert sign * excess > 3


def test_bus_layout(folders):
    root = folders / "phantom_a"
    names = [f"{n:06d}.png" for n in range(1, 27)]
    for part in ("original", "GT"):
        assert sorted(p.name for p in (root / part).iterdir()) == names
    for name in names:
        with Image.open(root / "original" / name) as image, Image.open(root / "GT" / name) as mask:
            assert (image.mode, mask.mode) == ("L", "L")
            assert image.size == mask.size
            assert set(np.unique(mask)) == {0, 255}


def test_busi_layout(folders):
    root = folders / "phantom_b"
    images = [p for p in root.glob("*/*.png") if "_mask" not in p.name]
    assert len(images) == 26
    modes = Counter()
    for path in images:
        label, stem = path.parent.name, path.stem
        number = int(stem.removeprefix(f"{label} (").removesuffix(")"))
        assert 1 <= number <= len([p for p in images if p.parent == path.parent])
        with Image.open(path) as image:
            assert image.mode == "RGB"
            size = image.size
        masks = sorted(path.parent.glob(f"{stem}_mask*.png"))
        assert masks[0].name == f"{stem}_mask.png"
        for k, mask_path in enumerate(masks):
            assert k == 0 or mask_path.name == f"{stem}_mask_{k}.png"
            with Image.open(mask_path) as mask:
                modes[mask.mode] += 1
                assert mask.size == size
                grey = np.asarray(mask.convert("L"))
            assert set(np.unique(grey)) == ({0} if label == "normal" else {0, 255})
    assert {path.parent.name for path in images} == {"benign", "malignant", "normal"}
    assert set(modes) == {"1", "RGB", "RGBA"}
    assert modes["1"] > modes["RGB"] + modes["RGBA"]
    assert any(root.glob("*/*_mask_1.png"))


def test_rewriting_replaces_and_leaves_nothing_beside(tmp_path):
    folder = tmp_path / "raw" / "phantom_a"
    write_phantoms("phantom_a", folder, count=3, seed=1)
    write_phantoms("phantom_a", folder, count=2, seed=1)
    assert len(list((folder / "original").iterdir())) == 2
    assert [p.name for p in folder.parent.iterdir()] == ["phantom_a"]


def test_failure_half_way_keeps_what_was_there(tmp_path, monkeypatch):
    folder = tmp_path / "phantom_a"
    write_phantoms("phantom_a", folder, count=1, seed=1)
    before = tree(folder)

    def fail_at_second(scanner, seed, index):
        if index == 1:
            raise KeyboardInterrupt
        return simulate(scanner, seed, index)

    monkeypatch.setattr(phantom, "simulate", fail_at_second)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms("phantom_a", folder, count=3, seed=2)
    assert tree(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["phantom_a"]


def test_empty_folder_is_filled(tmp_path):
    write_phantoms("phantom_b", tmp_path / "raw", count=1, seed=1)
    (tmp_path / "empty").mkdir()
    write_phantoms("phantom_b", tmp_path / "empty", count=1, seed=1)
    assert tree(tmp_path / "empty") == tree(tmp_path / "raw")


def test_foreign_folder_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(InputError, match="folder"):
        write_phantoms("phantom_a", tmp_path, count=1, seed=1)
    assert (tmp_path / "notes.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "phantom_z"}, "name is 'phantom_z'.*phantom_a"),
        ({"count": 0}, "count is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_input_names_the_parameter(tmp_path, change, says):
    arguments = {"name": "phantom_a", "folder": tmp_path / "x", "count": 1, "seed": 0} | change
    with pytest.raises(InputError, match=says):
        write_phantoms(**arguments)
    assert not (tmp_path / "x").exists()
