"""A pack: BUSI prepared at the paper's size, TAESD, and wheels, for a machine that has no network.

Grey images are stored once instead of three times, masks as bits. It is for one's own machines: it
holds images and weights of others, and never comes into git.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from wavegms.data.audit import audit_prepared, write_audit
from wavegms.data.manifest import MASK_KINDS, load_manifest, pixels_hash
from wavegms.data.prepare import prepare_dataset
from wavegms.errors import InputError
from wavegms.files import replace_folder, sha256_of, write_text
from wavegms.images import as_rgb, open_image, resize_image
from wavegms.run.gpu.wheels import LIST, WHEELS

DATASET = "busi"

# In a pack: the compressed data, the autoencoder, the twins among the images.
DATA, TAESD, AUDIT = "prepared", "taesd", "audit.csv"

# What a training needs beside torch, numpy, pandas, scipy, matplotlib, safetensors, accelerate and
# pillow with what they bring, and pytest for its tests. MedPy has no wheel: one is made.
_LIBRARIES = (
    *("diffusers", "importlib_metadata", "zipp", "regex", "requests", "urllib3", "idna"),
    *("certifi", "charset-normalizer", "kornia", "kornia_rs", "monai", "pydantic"),
    *("pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    *("filelock", "tabulate", "pytest", "pluggy", "iniconfig", "Pygments"),
)
_BUILT = "MedPy"

_PLATFORMS = ("2_28", "2_27", "2_17")


def write_pack(folder: Path, project: Path = Path(), wheels: bool = True) -> str:
    """Writes a pack and says what it holds; needs BUSI, its published split and TAESD in place.

    Raises:
        InputError: one of these is missing, or a wheel cannot be had.
    """
    weights = project / "models/taesd"
    found = [*weights.glob("taesd_*coder.safetensors"), *weights.glob("taesd_*coder.pth")]
    if len(found) < 2:
        raise InputError(f"{weights} lacks TAESD: `python -m wavegms get taesd` puts it there")
    with replace_folder(folder) as target, tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / DATASET
        prepare_dataset(
            DATASET,
            project / "data/raw" / DATASET,
            prepared,
            image_size=224,
            split="published",
            split_folder=project / "data/raw/splits",
            test_fraction=0.2,
            validation_fraction=0.1,
            seed=2333,
        )
        compress(prepared, target / DATA)
        write_audit(audit_prepared(prepared)[0], target / AUDIT)
        (target / TAESD).mkdir()
        for path in found:
            shutil.copyfile(path, target / TAESD / path.name)
        if wheels:
            _fetch_wheels(target / WHEELS, project)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        sums = {path.relative_to(target).as_posix(): sha256_of(path) for path in files}
        write_text(target / LIST, json.dumps({"sha256": sums}, indent=1) + "\n")
        size = sum(path.stat().st_size for path in files) / 1e6
    return f"{folder}: {len(files)} files, {size:.1f} MB"


def compress(prepared: Path, target: Path) -> None:
    """Copies a prepared folder without repetition; its manifest stays as it is."""
    for part in ("images", "masks"):
        (target / part).mkdir(parents=True)
    shutil.copyfile(prepared / "manifest.csv", target / "manifest.csv")
    for id in load_manifest(prepared)["id"]:
        image = open_image(prepared / "images" / f"{id}.png")
        red, green, blue = image.split()
        grey = red.tobytes() == green.tobytes() == blue.tobytes()
        (red if grey else image).save(target / "images" / f"{id}.png", optimize=True)
        mask = open_image(prepared / "masks" / f"{id}.png")
        if set(mask.getextrema()) <= {0, 255} and len(mask.getcolors()) <= 2:
            mask = mask.convert("1")  # bits, where no pixel is to be ignored
        mask.save(target / "masks" / f"{id}.png", optimize=True)


def expand(packed: Path, target: Path, small: int | None = None) -> None:
    """The prepared folder again, pixel by pixel; or for a rehearsal 64x64 and few of each split."""
    manifest = load_manifest(packed)
    if small:
        manifest = manifest.groupby("split").head(small).reset_index(drop=True)
    for part in ("images", "masks"):
        (target / part).mkdir(parents=True)
    hashes = []
    for id in manifest["id"]:
        image = as_rgb(open_image(packed / "images" / f"{id}.png"))
        grey = open_image(packed / "masks" / f"{id}.png").convert("L")
        if small:
            image, grey = resize_image(image, 64), grey.resize((64, 64), Image.Resampling.NEAREST)
        hashes.append(pixels_hash(np.asarray(image), MASK_KINDS[np.asarray(grey)]))
        image.save(target / "images" / f"{id}.png", compress_level=1)
        grey.save(target / "masks" / f"{id}.png", compress_level=1)
    if small:
        manifest["pixels"] = hashes
        write_text(target / "manifest.csv", manifest.to_csv(index=False))
    else:
        shutil.copyfile(packed / "manifest.csv", target / "manifest.csv")


def _fetch_wheels(folder: Path, project: Path) -> None:
    pins = {}
    for line in (project / "constraints.txt").read_text(encoding="utf-8").split():
        pins[re.split("[=<>]", line)[0].lower().replace("_", "-")] = line
    wanted = [pins[name.lower().replace("_", "-")] for name in _LIBRARIES]
    place = ["--no-deps", "--quiet", "--disable-pip-version-check"]
    target = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    for platform in (*(f"manylinux_{v}_x86_64" for v in _PLATFORMS), "manylinux2014_x86_64"):
        target += ["--platform", platform]
    for command in (
        ["download", *place, *target, "--dest", str(folder), *wanted],
        ["wheel", *place, "--wheel-dir", str(folder), pins[_BUILT.lower()]],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pip", *command], capture_output=True, encoding="utf-8"
        )
        if done.returncode:
            said = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
            raise InputError(f"a wheel cannot be had ({said}): a pack is made where pip works")
    if not list(folder.glob(f"{_BUILT.lower()}*-none-any.whl")):
        raise InputError(
            f"{_BUILT} was built for this machine alone: make the pack without a C++ "
            "compiler, so that its optional part is left out"
        )
