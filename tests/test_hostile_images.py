"""Images and masks that are broken, hostile or merely unusual: whole pixels, or one sentence."""

import io
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile import NO_FILES, Reader, damaged, drawn, outcome, rewritten, scratch, snapshot, suite
from hypothesis import strategies as st
from layouts import box_mask, mask_image, picture, save
from PIL import EpsImagePlugin, Image, ImageOps

from wavegms import InputError
from wavegms.data.catalog import find_cases
from wavegms.data.dataset import PreparedDataset
from wavegms.data.manifest import load_manifest
from wavegms.data.prepare import prepare_dataset
from wavegms.images import (
    FORMATS,
    MAX_PIXELS,
    MaskRule,
    as_mask,
    as_rgb,
    open_image,
    read_image,
)

# Every format with every mode that it can hold, and how it packs them.
ENCODINGS = [
    *((mode, "png", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *((mode, "jpg", {"quality": 95}) for mode in ("L", "RGB", "CMYK")),
    ("RGB", "jpg", {"progressive": True}),
    *((mode, "bmp", {}) for mode in ("1", "L", "P", "RGB")),
    *((mode, "gif", {}) for mode in ("L", "P")),
    *((mode, "tif", {}) for mode in ("1", "L", "RGB", "RGBA", "I;16", "CMYK")),
    *(("RGB", "tif", {"compression": kind}) for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")),
    *((mode, "webp", {"lossless": True}) for mode in ("RGB", "RGBA")),
]
FORMAT_OF = {"jpg": "JPEG", "tif": "TIFF"}


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, FORMAT_OF.get(kind, kind.upper()), **options)
    return buffer.getvalue()


def in_mode(mode: str) -> Image.Image:
    image = picture(1, (12, 9))
    return (
        mask_image(box_mask((12, 9), (2, 2, 9, 7)), mode) if mode == "I;16" else image.convert(mode)
    )


def animated(kind: str) -> bytes:
    others = [Image.new("RGB", (12, 9), colour) for colour in ("red", "blue")]
    return encoded(picture(1, (12, 9)), kind, save_all=True, append_images=others)


CONTENTS = [encoded(in_mode(mode), kind, **options) for mode, kind, options in ENCODINGS]
CONTENTS += [animated(kind) for kind in ("gif", "png", "webp", "tif")]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def black_png(width: int, height: int) -> bytes:
    """One bit a pixel, all zero: whole, and a thousandth of its pixels in bytes."""
    packer, row = zlib.compressobj(9), bytes(1 + -(-width // 8))
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif_of(screen: int, frame: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HH", screen, screen) + b"\x80\0\0\0\0\0\xff\xff\xff"
    return head + b"," + struct.pack("<HHHH", 0, 0, frame, frame) + b"\0\x02\x02\x4c\x01\0;"


def bmp_of(side: int) -> bytes:
    sizes = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + sizes


def webp_of(side: int) -> bytes:
    payload = b"\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14) + bytes(21)
    body = b"WEBPVP8L" + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_of(side: int, *tags: tuple[int, int]) -> bytes:
    tags = sorted([(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1), *tags])
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    body = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + body + zlib.compress(bytes(1000))


BOMBS = {
    "all zeros": lambda: black_png(20_000, 20_000),
    "all rows": lambda: black_png(1, 90_000_000 // 900),
    "GIF": lambda: gif_of(60_000, 60_000),
    "GIF, a frame beyond its screen": lambda: gif_of(1, 60_000),
    "BMP": lambda: bmp_of(60_000),
    "WebP": lambda: webp_of(16_383),
    "TIFF": lambda: tiff_of(60_000, (273, 8), (278, 60_000), (279, 64)),
    "TIFF, a tile": lambda: tiff_of(9, (322, 60_000), (323, 60_000), (324, 134), (325, 19)),
    "TIFF, a strip": lambda: tiff_of(9, (273, 110), (278, 4_000_000_000), (279, 19)),
}


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(hello) print\n%%EOF\n"


def other_format(kind: str) -> bytes:
    buffer = io.BytesIO()
    picture(1, (32, 32)).save(buffer, kind)
    return buffer.getvalue()


BROKEN = {
    **NO_FILES,
    **{f"bomb: {name}": rewritten(lambda _, make=make: make()) for name, make in BOMBS.items()},
    "a program": rewritten(EPS),
    # Formats that nobody uses here are not even tried.
    **{
        kind: rewritten(other_format(kind))
        for kind in ("PPM", "PCX", "TGA", "ICO", "JPEG2000", "PDF", "IM", "SGI")
    },
}


def sound_image(image: Image.Image, _path: Path) -> None:
    assert image.mode == "RGB" and 1 <= image.width * image.height <= MAX_PIXELS
    assert np.asarray(image).shape == (image.height, image.width, 3)


def sound_mask(mask: np.ndarray, path: Path) -> None:
    assert (
        mask.dtype == np.uint8
        and mask.max() <= 1
        and sorted(mask.shape) == sorted(Image.open(path).size)
    )


def with_exif(draw, path: Path) -> None:
    kind, block = draw(st.sampled_from(["png", "jpg", "webp"])), draw(st.binary(max_size=60))
    exif = block if kind == "png" else b"Exif\0\0" + block
    path.write_bytes(encoded(picture(1, (12, 9)), kind, exif=exif))


def image_reader(convert, sound, random) -> Reader:
    return Reader(
        read=lambda path: read_image(path, convert)[0],
        make=lambda path: picture(1, (12, 9)).save(path),
        sound=sound,
        file="a.png",
        broken=BROKEN,
        random={"damaged": (500, drawn(damaged(CONTENTS)))} | random,
    )


def prepare(raw: Path, out: Path, name: str = "mine"):
    return prepare_dataset(
        name,
        raw,
        out,
        image_size=16,
        split="random",
        split_folder=raw,
        test_fraction=0.3,
        validation_fraction=0.3,
        seed=1,
    )


def assert_whole(out: Path, report) -> None:
    """By the contract alone: the files, the manifest, and pixels that fit it."""
    manifest = load_manifest(out)
    expected = {f"{part}/{id}.png" for part in ("images", "masks") for id in manifest["id"]}
    resized = manifest[["original_height", "original_width"]].ne(16).any(axis=1)
    expected |= {f"originals/{id}.png" for id in manifest["id"][resized]}
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        "manifest.csv",
        *expected,
    }
    for id in manifest["id"]:
        with Image.open(out / "images" / f"{id}.png") as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (16, 16))
        with Image.open(out / "masks" / f"{id}.png") as mask:
            assert (mask.format, mask.mode, mask.size) == ("PNG", "L", (16, 16))
            assert {0, 255} >= set(np.unique(mask)) and 255 in np.asarray(mask)
    for part, count in report.counts.items():
        assert count == 0 or len(PreparedDataset(out, part)) == count


def prepared_anew(raw: Path, name: str = "mine"):
    """Manifest and cases, where an earlier folder lies, which stays if the input is refused."""
    with scratch() as root:
        out = root / "x"
        out.mkdir()
        (out / "manifest.csv").write_text("earlier")
        before = snapshot(root)
        try:
            report = prepare(raw, out, name)
        except InputError:
            assert snapshot(root) == before
            raise
        assert_whole(out, report)
        assert [path.name for path in root.iterdir()] == ["x"]
        return load_manifest(out), find_cases(name, raw)


def sound_folder(prepared, raw: Path) -> None:
    """Whatever names, labels and groups there are must come back from the manifest."""
    manifest, cases = prepared
    assert manifest["label"].tolist() == [case.label for case in cases]
    assert manifest["group"].tolist() == [case.group for case in cases]
    assert {raw / source for source in manifest["source"]} == {case.image for case in cases}
    if (raw / "images").is_dir():
        assert {case.image for case in cases} == {
            path for path in (raw / "images").iterdir() if not path.name.startswith(".")
        }


MASK = mask_image(box_mask((12, 9), (2, 2, 9, 7)))


def write_pairs(raw: Path) -> None:
    for i in range(5):
        save(picture(i, (12, 9)), raw / f"images/{i}.png")
        save(MASK, raw / f"masks/{i}.png")


def masks_of(size: tuple[int, int]) -> st.SearchStrategy[Image.Image]:
    """Grey levels, colours, label maps, inverted, empty, full, in any mode or size."""
    box = box_mask(size, (2, 2, 9, 7))
    levels = st.tuples(st.integers(0, 255), st.integers(0, 255))
    grey = levels.map(lambda two: Image.fromarray(np.where(box, two[0], two[1]).astype(np.uint8)))
    colour = st.tuples(*[st.integers(0, 255)] * 3).map(lambda rgb: Image.new("RGB", size, rgb))
    modes = st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
    usual = modes.map(lambda mode: mask_image(box, mode))
    edges = st.just(ImageOps.invert(mask_image(box)).resize((36, 27)).resize(size))
    unusual = st.sampled_from(["F", "I", "CMYK", "HSV", "YCbCr", "LAB"]).map(
        lambda mode: Image.new(mode, size)
    )
    resized = st.tuples(st.integers(1, 30), st.integers(1, 30)).map(
        lambda other: mask_image(box).resize(other)
    )
    return st.one_of(grey, colour, usual, edges, unusual, resized)


def any_masks(draw, raw: Path) -> list:
    shutil.rmtree(raw / "masks")
    (raw / "masks").mkdir()
    for i in range(5):
        mask = draw(masks_of((12, 9)))
        # TIFF holds every mode.
        mask.convert("RGB" if mask.mode == "HSV" else mask.mode).save(raw / f"masks/{i}.tif")
    # one that is no mask, or all where what they show cannot be told
    return [*(f"masks/{i}.tif" for i in range(5)), "reading.mine.foreground"]


def damaged_files(draw, raw: Path) -> list:
    hit = []
    for content in draw(st.lists(damaged(CONTENTS), min_size=1, max_size=3)):
        path = raw / draw(st.sampled_from(["images", "masks"])) / f"{draw(st.integers(0, 4))}.png"
        path.write_bytes(content)
        hit.append(path)
    # An image that came out at another size is told by its mask, and a mask that still opens by
    # what all of them together do not tell.
    return [*hit, *(raw / "masks" / path.name for path in hit), "reading.mine.foreground"]


ODD = ["\n", "\r", "\t", "\x1b[31m", '"', ",", "'", " ", "é", "e\u0301", "\u202e", "ß", "界", "%s"]
stems = st.one_of(
    st.lists(st.sampled_from([*ODD, "a", "1", "_", ".", "-", "(", ")"]), max_size=6).map("".join),
    st.sampled_from(["con", "..", "-rf", "a" * 245, "界" * 80, "\u0958" * 40, "x" * 201, "\udcff"]),
)


def entry(kind: str, path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        path.mkdir(exist_ok=True)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in ("broken", "loop"):
        path.symlink_to("nowhere" if kind == "broken" else path.name)
    elif kind == "link":
        target = path.parent.parent / "elsewhere" / image.mode
        path.symlink_to(save(image, target.with_suffix(".png")))
    else:
        image.save(path, "PNG")


def odd_names(draw, raw: Path) -> list:
    """Only the first pair is odd by its kind, or no other fault would ever be reached."""
    shutil.rmtree(raw)
    kinds = st.sampled_from(
        ["file", "file", "file", "link", "folder", "broken", "loop", "fifo", "none"]
    )
    parts = ("images", draw(kinds)), ("masks", draw(kinds))
    for number, stem in enumerate(draw(st.lists(stems, min_size=3, max_size=6, unique=True))):
        for part, kind in parts:
            image = picture(number, (12, 9)) if part == "images" else mask_image(box_mask((12, 9)))
            name, kind = f"{stem}.png", kind if number == 0 else "file"
            if len(os.fsencode(name)) > 255 or kind == "none":
                name, kind = f"{number}.png", "file"
            entry(kind, raw / part / name, image)
    return ["/images", "/masks", "_fraction"]


metadata = st.one_of(
    st.binary(max_size=120),
    st.lists(
        st.sampled_from(
            [*ODD, "ISIC_0", "ISIC_1", "HAM_1", ",", ",", "\n", '"', "nv", "\0", "\ud7ff", "\x85"]
        ),
        max_size=30,
    ).map(lambda parts: ("lesion_id,image_id,dx\n" + "".join(parts)).encode()),
)


def write_ham10000(raw: Path) -> None:
    masks = raw / "HAM10000_segmentations_lesion_tschandl"
    for i in range(4):
        save(picture(i, (12, 9)), raw / f"HAM10000_images_part_{1 + i % 2}/ISIC_{i}.jpg")
        save(MASK, masks / f"ISIC_{i}_segmentation.png")


def black_and_white(image):
    return as_mask(image, MaskRule({8: ((128, 255),), 16: ((32768, 65535),)}))


def any_table(draw, raw: Path) -> None:
    (raw / "HAM10000_metadata").write_bytes(draw(metadata))


READERS = {
    "image": image_reader(
        as_rgb,
        sound_image,
        {
            "noise": (200, drawn(st.binary(max_size=200))),
            "text": (100, drawn(st.text(max_size=80).map(str.encode))),
            "exif": (150, with_exif),
        },
    ),
    "mask": image_reader(black_and_white, sound_mask, {}),
    "folder": Reader(
        read=prepared_anew,
        make=write_pairs,
        sound=sound_folder,
        random={
            "masks of every kind": (60, any_masks),
            "damaged files": (80, damaged_files),
            "odd names, links and folders": (120, odd_names),
        },
    ),
    "table of metadata": Reader(
        read=lambda raw: prepared_anew(raw, "ham10000"),
        make=write_ham10000,
        sound=sound_folder,
        names=lambda raw: ["HAM10000_metadata", "test_fraction", "validation_fraction"],
        random={"anything": (50, any_table)},
    ),
}

test_valid_images, test_broken_images, test_random_images = suite(READERS)


@pytest.mark.parametrize(("mode", "kind", "options"), ENCODINGS)
def test_the_content_decides_not_the_ending(survived, tmp_path, mode, kind, options):
    """Every encoding under every ending: the pixels that it has under its own."""
    own = tmp_path / f"own.{kind}"
    own.write_bytes(encoded(in_mode(mode), kind, **options))
    expected = np.asarray(read_image(own, as_rgb)[0])
    for suffix in ("png", "jpg", "tif", "gif"):
        path = tmp_path / f"other.{suffix}"
        path.write_bytes(own.read_bytes())
        assert np.array_equal(np.asarray(read_image(path, as_rgb)[0]), expected)
        survived("inputs")
    if mode not in ("I;16", "1") and kind != "jpg" and options.get("compression") != "jpeg":
        shown = in_mode(mode).convert("RGB") if mode != "RGBA" else picture(1, (12, 9))
        # A GIF chooses its palette.
        assert np.abs(expected.astype(int) - np.asarray(shown)).mean() < (
            20 if kind == "gif" else 1
        )


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif"])
def test_an_animation_is_refused(survived, tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(animated(kind))
    with pytest.raises(InputError, match=rf"a.{kind} has \d pages"):
        open_image(path)
    survived("inputs")


# What each orientation makes of the upright picture, so that the note in EXIF undoes it.
_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", list(_STORED))
def test_every_orientation_stands_upright(survived, tmp_path, kind, orientation):
    upright, turn = (
        mask_image(box_mask((24, 16), (2, 2, 9, 7))).convert("RGB"),
        _STORED[orientation],
    )
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "webp" else {"quality": 100}
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(stored, kind, exif=exif, **options))
    rgb, mask = read_image(path, as_rgb)[0], read_image(path, black_and_white)[0]
    assert np.abs(np.asarray(rgb, int) - np.asarray(upright)).max() <= 8  # of JPEG
    assert np.array_equal(mask, np.asarray(upright)[..., 0] > 127)
    survived("inputs")


def test_paths_that_are_none(survived, tmp_path):
    for path in (tmp_path / ("x" * 300), tmp_path / "nul\0.png"):
        shown = repr(str(path))[1:-1]
        assert outcome(tmp_path, [shown], lambda path=path: open_image(path)) is None
        survived("inputs")


def test_no_program_hides_in_an_image(survived, tmp_path, monkeypatch):
    """Pillow would hand PostScript to Ghostscript, whatever the file's ending."""
    canary = tmp_path / "ran"
    ghostscript = tmp_path / "bin/gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {canary}\nexit 1\n")
    ghostscript.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    path = tmp_path / "scan.png"
    path.write_bytes(EPS)
    with pytest.raises(InputError, match="no known image format") as error:
        open_image(path)
    assert all(name in str(error.value) for name in FORMATS)
    assert not canary.exists()
    with pytest.raises(Exception):  # noqa: B017  whatever comes of the script's status
        Image.open(path).load()
    assert canary.exists(), "the careless way runs nothing either, so this test shows nothing"
    survived("inputs")


def test_inverted_masks_are_told_in_the_report(survived, tmp_path):
    """They are taken as they are: whether black is the lesion only a person can say."""
    for i in range(6):
        save(picture(i, (12, 9)), tmp_path / f"raw/images/{i}.png")
        mask = mask_image(box_mask((12, 9), (4, 3, 8, 6)))
        save(ImageOps.invert(mask) if i < 4 else mask, tmp_path / f"raw/masks/{i}.png")
    report = prepare(tmp_path / "raw", tmp_path / "out")
    (told,) = report.differences
    assert "4 of 6 masks" in told and "(0, 1, 2, ...)" in told and "invert" in told
    for i in range(3):
        save(
            ImageOps.invert(Image.open(tmp_path / f"raw/masks/{i}.png")),
            tmp_path / f"raw/masks/{i}.png",
        )
    assert prepare(tmp_path / "raw", tmp_path / "out").differences == []
    survived("inputs", 4)
