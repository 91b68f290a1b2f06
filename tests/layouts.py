"""Small files in each published layout, written by the tests themselves.

Every writer returns the folder that `find_cases` is given. The pictures are noise with one bright
rectangle, which is also the mask, so that a test knows what must come out.
"""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 30)  # width, height: not square, so that a mix-up of the two shows
BOX = (8, 6, 24, 21)  # left, top, right, bottom of the lesion


def picture(seed: int = 0, size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    """Noise below 100 with the lesion at 200."""
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 100, (size[1], size[0], 3), dtype=np.uint8)
    left, top, right, bottom = BOX
    array[top:bottom, left:right] = 200
    return Image.fromarray(array).convert(mode)


def box_mask(size: tuple[int, int] = SIZE, box: tuple[int, int, int, int] = BOX) -> np.ndarray:
    """The lesion as a boolean array."""
    mask = np.zeros((size[1], size[0]), dtype=bool)
    left, top, right, bottom = box
    mask[top:bottom, left:right] = True
    return mask


def mask_image(mask: np.ndarray, mode: str = "L") -> Image.Image:
    """A boolean array as an image of the given mode, in the way published masks use it."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    if mode == "P":
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette([0, 0, 0, 220, 20, 20])
        return image
    if mode == "I;16":
        return Image.fromarray(mask.astype(np.uint16) * 65535)
    return grey.convert(mode)


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def write_bus(folder: Path, count: int = 6) -> Path:
    for i in range(1, count + 1):
        save(picture(i, mode="L"), folder / "original" / f"{i:06}.png")
        save(mask_image(box_mask()), folder / "GT" / f"{i:06}.png")
    return folder


def write_busi(folder: Path, count: int = 4) -> Path:
    """Per class `count` images; mask modes, sizes and numbers of masks differ as in the original.

    `benign (1)` has three masks: the box, a corner pixel each for the two others.
    """
    modes = ["1", "L", "RGB", "RGBA", "P"]
    root = folder / "Dataset_BUSI_with_GT"
    for label in ("benign", "malignant", "normal"):
        for i in range(1, count + 1):
            size = (SIZE[0] + i, SIZE[1] + 2 * i)
            save(picture(i, size), root / label / f"{label} ({i}).png")
            mask = np.zeros_like(box_mask(size)) if label == "normal" else box_mask(size)
            mode = modes[i % len(modes)]
            save(mask_image(mask, mode), root / label / f"{label} ({i})_mask.png")
    size = (SIZE[0] + 1, SIZE[1] + 2)
    for suffix, box in (("_mask_1", (0, 0, 6, 5)), ("_mask_2", (35, 27, 41, 32))):
        path = root / "benign" / f"benign (1){suffix}.png"
        save(mask_image(box_mask(size, box), "1"), path)
    return folder


def write_kvasir(folder: Path, count: int = 5) -> Path:
    """With `train.txt` and `test.txt`, as published; the last image is the test list."""
    names = [f"ck{i:02}x" for i in range(count)]
    for i, name in enumerate(names):
        save(picture(i), folder / "images" / f"{name}.jpg")
        save(mask_image(box_mask(), "RGB"), folder / "masks" / f"{name}.png")
    (folder / "train.txt").write_text("\n".join(names[:-1]) + "\n\n")
    (folder / "test.txt").write_text(f"{names[-1]}.jpg\n")
    return folder


def write_ham10000(
    folder: Path, count: int = 8, metadata: str | None = "HAM10000_metadata"
) -> Path:
    """Images 2k and 2k+1 are of the same lesion; the parts have half of the images each."""
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for i in range(count):
        name = f"ISIC_{24306 + i:07}"
        part = 1 if i < count // 2 else 2
        save(picture(i), folder / f"HAM10000_images_part_{part}" / f"{name}.jpg")
        masks = folder / "HAM10000_segmentations_lesion_tschandl"
        save(mask_image(box_mask()), masks / f"{name}_segmentation.png")
        rows.append(f"HAM_{i // 2:07},{name},{'nv' if i < 4 else 'mel'},histo,45.0,male,back")
    if metadata:
        (folder / metadata).write_text("\n".join(rows) + "\n")
    return folder


def write_stu(folder: Path, count: int = 5) -> Path:
    """Masks of twice the size of their images, as most of the published ones are larger."""
    large = (2 * SIZE[0], 2 * SIZE[1])
    for i in range(1, count + 1):
        save(picture(i, mode="L"), folder / f"Test_Image_{i}.png")
        mask = box_mask(large, tuple(2 * side for side in BOX))
        save(mask_image(mask), folder / f"mask_{i}.png")
    return folder


def write_plain(folder: Path, count: int = 5) -> Path:
    """One's own data, in several formats with endings in either case."""
    suffixes = [".png", ".JPG", ".bmp", ".tif", ".gif"]
    for i in range(count):
        save(picture(i), folder / "images" / f"scan {i}{suffixes[i % len(suffixes)]}")
        save(mask_image(box_mask()), folder / "masks" / f"scan {i}.png")
    return folder


def write_split(path: Path, train: list, test: list) -> Path:
    """A published split, as the GMS repository has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"train": {"name_list": train}, "test": {"name_list": test}}
    path.write_bytes(pickle.dumps(content))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, hidden ones included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def edit_json(path: Path, *keys: str, value) -> None:
    """Changes one value of a JSON file, down these keys."""
    content = json.loads(path.read_text())
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(content))
