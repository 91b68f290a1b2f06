"""Where the public datasets, split lists and weights come from: recipes, as plain data.

This project has tried none of these addresses: sizes and checksums are second-hand, as public
repositories quote them (`vouched_by` says of whom). Only the split lists were measured here, on
copies of the published files; that the pinned commit holds the same ones is assumed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Download:
    """One file on the web.

    Attributes:
        file: Its name in data/downloads.
        url: Where it is.
        size: Bytes; of the whole file if `exact`, else roughly, for the reader.
        checksum: "sha256:..." or "md5:..." in hexadecimal digits, or None where none is known: the
            first download is then recorded and later ones are compared with it.
        vouched_by: Who states size and checksum.
        exact: Whether `size` is exact.
        into: Folder below the target to unpack into, "" for the target itself, None to put the
            file there as it is. A leading folder of the same name in the archive is not doubled.
    """

    file: str
    url: str
    size: int
    checksum: str | None
    vouched_by: str
    exact: bool = True
    into: str | None = None


@dataclass(frozen=True)
class Source:
    """What `python -m wavegms get NAME` fetches and where it goes.

    Attributes:
        name: The name on the command line; for a dataset, as in the catalog.
        title: What it is.
        target: The folder that is filled, relative to the project's folder.
        terms: Licence and terms, in a few words.
        page: The page that states them, from which to download by hand.
        downloads: The files.
        inner: Archives inside the archives, relative to the target; unpacked where they are, and
            removed.
    """

    name: str
    title: str
    target: str
    terms: str
    page: str
    downloads: tuple[Download, ...]
    inner: tuple[str, ...] = ()


def _dataverse(file: str, number: str, size: int, md5: str, into: str | None) -> Download:
    url = f"https://dataverse.harvard.edu/api/access/datafile/{number}"
    return Download(
        file, url, size, f"md5:{md5}", "Harvard Dataverse, as quoted by others", into=into
    )


def _split(folder: str, file: str, size: int, sha256: str) -> Download:
    # A commit, so that the lists cannot change behind the address.
    url = (
        "https://raw.githubusercontent.com/King-HAW/GMS/5a9ce0084d2558c800e420f2712ab2adc1af38a6/"
        f"Dataset/{folder}/{file}"
    )
    return Download(file, url, size, f"sha256:{sha256}", "this project, measured on a copy")


def _taesd(file: str, size: int, sha256: str) -> Download:
    url = (
        "https://huggingface.co/madebyollin/taesd/resolve/614f76814bbe30edbe2e627ace1c2234c81a2c0e/"
        f"{file}"
    )
    return Download(file, url, size, f"sha256:{sha256}", "the hub, as quoted by others")


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="busi",
            title="BUSI, breast ultrasound",
            target="data/raw/busi",
            terms="public, this project knows of no licence text; cite the article",
            page="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
            downloads=(
                Download(
                    file="Dataset_BUSI.zip",
                    url="https://scholar.cu.edu.eg/Dataset_BUSI.zip",
                    size=200_000_000,
                    checksum="sha256:"
                    "b2ce09f6063a31a73f628b6a6ee1245187cbaec225e93e563735691d68654de7",
                    vouched_by="from torch-em, another project; the publisher states none",
                    exact=False,
                    into="",
                ),
            ),
        ),
        Source(
            name="kvasir_instrument",
            title="Kvasir-Instrument, endoscopy",
            target="data/raw/kvasir_instrument",
            terms="research and education only, no commercial use without written permission; "
            "cite the article",
            page="https://datasets.simula.no/kvasir-instrument/",
            downloads=(
                Download(
                    file="kvasir-instrument.zip",
                    url="https://datasets.simula.no/downloads/kvasir-instrument.zip",
                    size=170_000_000,
                    checksum=None,
                    vouched_by="none is published; the first download is recorded",
                    exact=False,
                    into="kvasir-instrument",
                ),
            ),
            inner=("kvasir-instrument/images.tar.gz", "kvasir-instrument/masks.tar.gz"),
        ),
        Source(
            name="ham10000",
            title="HAM10000, dermatoscopy",
            target="data/raw/ham10000",
            terms="no commercial use, Creative Commons BY-NC; cite the article",
            page="https://doi.org/10.7910/DVN/DBW86T",
            downloads=(
                _dataverse(
                    "HAM10000_images_part_1.zip",
                    "3172585",
                    1_366_522_108,
                    "4639bfa73ab251610530a97c898e6e46",
                    "HAM10000_images_part_1",
                ),
                _dataverse(
                    "HAM10000_images_part_2.zip",
                    "3172584",
                    1_403_566_547,
                    "da43d6cc50f6613013be07e8986b384b",
                    "HAM10000_images_part_2",
                ),
                _dataverse(
                    "HAM10000_segmentations_lesion_tschandl.zip",
                    "3838943",
                    10_808_743,
                    "6e8d252e09cfdb0189199f15985a5b84",
                    "HAM10000_segmentations_lesion_tschandl",
                ),
                # Without `original`, Dataverse gives a table of its own making, with tabs.
                _dataverse(
                    "HAM10000_metadata.csv",
                    "4338392?format=original",
                    690_218,
                    "8f85fb1aa29d80a2797247e434deb79d",
                    None,
                ),
            ),
        ),
        Source(
            name="splits",
            title="the published train and test lists",
            target="data/raw/splits",
            terms="part of the GMS repository, see there",
            page="https://github.com/King-HAW/GMS/tree/main/Dataset",
            downloads=(
                _split(
                    "bus",
                    "bus_train_test_names.pkl",
                    1_526,
                    "1b4e40239913b06f97e6797f9208245738d424753b96df584f154dbddecea775",
                ),
                _split(
                    "busi",
                    "busi_train_test_names.pkl",
                    8_884,
                    "ed7a3dd5764b4a90a49ad3b9bfb72cc9f7b708dbbd2244c3d874aace265fa5a7",
                ),
                _split(
                    "kvasir-instrument",
                    "kvasir_train_test_names.pkl",
                    16_579,
                    "297a5c72ba9edca78a8804b933d9507091787ebb2455930bc75bc0bfc778cf7f",
                ),
                _split(
                    "ham10000",
                    "ham10000_train_test_names.pkl",
                    150_320,
                    "74560789ab0f4db5e0c96abd1b59a180671fc9bd1a2d143c45f35151206f6521",
                ),
            ),
        ),
        Source(
            name="taesd",
            title="TAESD, the pretrained Tiny-VAE",
            target="models/taesd",
            terms="MIT",
            page="https://huggingface.co/madebyollin/taesd",
            downloads=(
                _taesd(
                    "taesd_encoder.safetensors",
                    4_895_600,
                    "160d90c61c3a5ce50fe2cbe6404b3429f5763772d61b38523cc37e1525b4e19f",
                ),
                _taesd(
                    "taesd_decoder.safetensors",
                    4_895_612,
                    "f0fb51dd10d41c26612c070fa0b52ea0215a5ff90792134b4971109dd713c019",
                ),
            ),
        ),
    )
}
