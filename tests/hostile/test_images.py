"""Images, masks, volumes, dataset folders and model files that cannot be used as they are.

Most rows are products: what may be wrong with a file, by format, as an image and as a mask, in a
dataset and as an input of `brainseg.predict`.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
import torch
from hostile_cases import Answer, Case
from numpy.typing import NDArray
from PIL import Image
from predictions import read_rows
from safetensors.torch import load_file, save_file

from brainseg import predict
from brainseg.data.slice_store import SliceStore
from brainseg.inference.overlay import encode_picture
from brainseg.model.model_file import read_header, save_model

SIDE = 32
PATIENTS = ("P1", "P2", "P3")
Fault = bytes | Callable[[Path], object]
"""A file's content, or what makes something else of its path."""
LGG = ("brainseg.explore.__main__", "--data", "{here}/data", "--check")
PLAN = ("study.run", "--data", "{here}/data", "--plan", "--grid", "lite")


@functools.cache
def _pixels(patient: str, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image of three channels and its mask, which holds a disc of 255."""
    rng = np.random.default_rng([int(patient[1:]), number])
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = (rows - rng.integers(10, 22)) ** 2 + (columns - rng.integers(10, 22)) ** 2 < 30
    image = rng.integers(20, 60, (SIDE, SIDE, 3)) + 120 * mask[:, :, None]
    return image.astype(np.uint8), mask.astype(np.uint8) * 255


def _write_lgg(here: Path) -> Path:
    for patient in PATIENTS:
        for number in (1, 2, 3):
            _write_slice(here / "data" / patient, f"{patient}_{number}", *_pixels(patient, number))
    return here / "data"


def _write_slice(folder: Path, name: str, image: Any, mask: Any, suffix: str = ".tif") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}{suffix}").write_bytes(encode_picture(image, suffix))
    ending = ".png" if suffix == ".jpg" else suffix
    (folder / f"{name}_mask{ending}").write_bytes(encode_picture(mask, ending))


def _write_described(here: Path, suffix: str) -> Path:
    for patient in PATIENTS:
        for number in (1, 2, 3):
            pixels = _pixels(patient, number)
            _write_slice(here / "data" / patient, f"{patient}_{number}", *pixels, suffix)
    ending = ".png" if suffix == ".jpg" else suffix
    text = f'images: "{{patient}}/{{name}}{suffix}"\nmasks: "{{patient}}/{{name}}_mask{ending}"\n'
    (here / "data" / "dataset.yaml").write_text(f"{text}channels: [a, b, c]\n")
    return here / "data"


def _put(path: Path, fault: Fault) -> None:
    path.unlink(missing_ok=True)
    if isinstance(fault, bytes):
        path.write_bytes(fault)
    else:
        fault(path)


def _save(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _break_deflate(array: NDArray[np.uint8]) -> bytes:
    """Damage a compressed TIFF where only its checksum tells."""
    whole = _save(Image.fromarray(array), "TIFF", compression="tiff_deflate")
    with Image.open(io.BytesIO(whole)) as image:
        last = image.tag_v2[273][0] + image.tag_v2[279][0] - 1  # type: ignore[attr-defined]
    return whole[:last] + bytes([whole[last] ^ 16]) + whole[last + 1 :]


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**31)


SPECIAL: dict[str, tuple[Fault, str]] = {
    "a pipe": (os.mkfifo, "pipe, socket or device"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "pipe, socket or device"),
    "a folder": (Path.mkdir, "is a folder"),
    "of 2 GiB": (_sparse, ""),
    "empty": (b"", ""),
    "text": (b"<html>404</html>" * 30, ""),
    "zeros": (bytes(5000), ""),
}


def _image_faults(form: str, array: NDArray[np.uint8]) -> dict[str, tuple[Fault, str]]:
    """What may be wrong with a file of a format: what it holds, and words of the sentence."""
    image, turned = Image.fromarray(array), Image.Exif()
    turned[274] = 6
    whole, wide = _save(image, form), image.resize((4097, SIDE))
    others = sorted({"TIFF", "PNG", "JPEG"} - {form})
    faults: dict[str, tuple[Fault, str]] = {
        **SPECIAL,
        **{f"cut at {p} %": (whole[: len(whole) * p // 100], "truncated") for p in (1, 50, 95)},
        **{f"a {other}": (_save(image, other), f"holds a {other} image") for other in others},
        "too wide": (_save(wide, form), "at most 4096 along a side"),
    }
    if form != "JPEG":
        pages: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(90)]}
        faults |= {
            "of two pages": (_save(image, form, **pages), "2 pages"),
            "with a palette": (_save(image.convert("P"), form), "a palette of colours"),
            "grey and transparent": (_save(image.convert("LA"), form), "transparency"),
        }
    if form != "PNG":
        faults |= {
            "of ink": (_save(image.convert("CMYK"), form), "ink (CMYK)"),
            "turned by a tag": (_save(image, form, exif=turned), "orientation tag (6)"),
        }
    if form == "TIFF":
        floats = image.convert("F")
        faults |= {
            "of fractions": (_save(floats, form), "float32"),
            "damaged inside": (_break_deflate(array), "incorrect data check"),
        }
    return faults


FORMS = {".tif": "TIFF", ".png": "PNG", ".jpg": "JPEG"}


def _file_cases() -> Iterator[Case]:
    for suffix, form in FORMS.items():
        for role in ("image", "mask"):
            if (role, form) == ("mask", "JPEG"):
                continue  # lossy: its values are neither 0 nor 255
            array = _pixels("P2", 2)[role == "mask"]
            name = f"P2_2{'_mask' if role == 'mask' else ''}{suffix}"
            for fault, (content, words) in _image_faults(form, array).items():
                write = _write_lgg if form == "TIFF" else _write_described
                yield Case(
                    f"{role} {suffix} {fault}",
                    LGG,
                    1,
                    # Where a pattern finds no file, the missing half is what is named.
                    ("P2_2", *([words] if isinstance(content, bytes) or form == "TIFF" else [])),
                    functools.partial(_prepare, write, suffix, f"P2/{name}", content),
                )


def _prepare(write: Any, suffix: str, name: str, fault: Fault, here: Path) -> None:
    root = write(here) if write is _write_lgg else write(here, suffix)
    _put(root / name, fault)


# Volumes.


def _volume(channels: int = 1, dtype: type = np.uint8) -> bytes:
    shape = (SIDE, SIDE, 4) if channels == 1 else (SIDE, SIDE, 4, channels)
    values: NDArray[Any] = np.random.default_rng(channels).integers(0, 200, shape).astype(dtype)
    return bytes(nibabel.Nifti1Image(values, np.eye(4)).to_bytes())


def _patch(volume: bytes, *changes: tuple[int, str, tuple[float, ...]]) -> bytes:
    """Overwrite fields of a header, each by its byte, its format and its values."""
    changed = bytearray(volume)
    for offset, form, values in changes:
        struct.pack_into(f"<{form}", changed, offset, *values)
    return bytes(changed)


DIM, TYPE, OFFSET, SFORM, AFFINE = 40, 70, 108, 254, 280


def _volume_faults(channels: int) -> dict[str, tuple[Fault, str]]:
    good = _volume(channels)
    last = (channels, 1, 1, 1) if channels > 1 else (1, 1, 1, 1)
    axes = 4 if channels > 1 else 3

    def sized(*sides: int) -> bytes:
        return _patch(good, (DIM, "8h", (axes, *sides, *last)))

    infinite = np.full((SIDE, SIDE, 4), 1, np.float32)
    infinite[3, 3, 3] = np.inf
    return {
        **SPECIAL,
        "cut in the header": (good[:100], "not a NIfTI volume"),
        "cut at the header's end": (good[:348], ""),
        "cut in the values": (good[: len(good) // 2], "damaged"),
        "declares more than it holds": (sized(SIDE, SIDE, 900), "damaged"),
        "declares gigabytes": (sized(4000, 4000, 4000), "bytes decoded; at most"),
        "declares a long side": (sized(5000, SIDE, 4), "at most 4096 along a side"),
        "declares no slices": (sized(SIDE, SIDE, 0), ""),
        "declares a negative side": (sized(SIDE, -5, 4), ""),
        "of two axes": (_patch(good, (DIM, "h", (2,))), "expected slices with an affine"),
        "of nine axes": (_patch(good, (DIM, "h", (9,))), ""),
        "of complex numbers": (_patch(good, (TYPE, "2h", (32, 64))), "complex64"),
        "of an unknown type": (_patch(good, (TYPE, "2h", (9999, 8))), "not a NIfTI volume"),
        "values far behind": (_patch(good, (OFFSET, "f", (1e9,))), "begin at byte 1000000000"),
        "values before the file": (_patch(good, (OFFSET, "f", (-8.0,))), "begin at byte -8"),
        "values at no number": (_patch(good, (OFFSET, "f", (np.nan,))), "begin at byte nan"),
        "affine of NaN": (_patch(good, (SFORM, "h", (1,)), (AFFINE, "f", (np.nan,))), ""),
        "affine of zeros": (_patch(good, (SFORM, "h", (1,)), (AFFINE, "12f", (0,) * 12)), ""),
        "infinite values": (bytes(nibabel.Nifti1Image(infinite, np.eye(4)).to_bytes()), ""),
        "random bytes": (np.random.default_rng(0).bytes(5000), "begin at byte"),
    }


def _packed(content: Fault, suffix: str) -> Fault:
    is_file = isinstance(content, bytes) and content not in (b"", bytes(5000))
    return gzip.compress(content) if is_file and suffix.endswith(".gz") else content  # type: ignore[arg-type]


def _write_volumes(here: Path, suffix: str) -> Path:
    mask = np.zeros((SIDE, SIDE, 4), np.uint8)
    mask[5:9, 5:9, 2] = 1
    for number, patient in enumerate(PATIENTS):
        rng = np.random.default_rng(number)
        values: NDArray[np.uint8] = rng.integers(0, 200, (SIDE, SIDE, 4), dtype=np.uint8)
        for folder, array in (("images", values), ("masks", mask)):
            (here / "data" / folder).mkdir(parents=True, exist_ok=True)
            content = bytes(nibabel.Nifti1Image(array, np.eye(4)).to_bytes())
            _put(here / "data" / folder / f"{patient}{suffix}", _packed(content, suffix))
    text = f'images: "images/{{patient}}{suffix}"\nmasks: "masks/{{patient}}{suffix}"\n'
    (here / "data" / "dataset.yaml").write_text(f"{text}channels: [FLAIR]\n")
    return here / "data"


def _volume_cases() -> Iterator[Case]:
    for suffix in (".nii", ".nii.gz"):
        for fault, (content, words) in _volume_faults(1).items():
            packed = _packed(content, suffix)
            for role in ("images", "masks"):
                yield Case(
                    f"{role} {suffix} {fault}",
                    LGG,
                    1,
                    ("P2", *([words] if isinstance(content, bytes) else [])),
                    functools.partial(
                        _prepare, _write_volumes, suffix, f"{role}/P2{suffix}", packed
                    ),
                )


# Folders.


def _dataset(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda here: change(_write_lgg(here))


def _rename(old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        for path in sorted(root.rglob(f"*{old}*"), reverse=True):
            path.rename(path.with_name(path.name.replace(old, new)))

    return _dataset(change)


def _more(folder: str, name: str, patient: str, number: int) -> Callable[[Path], object]:
    """Write a slice, whose pixels may be those of another one."""
    return _dataset(lambda root: _write_slice(root / folder, name, *_pixels(patient, number)))


def _remask(change: Callable[[Any], Any], chosen: str = "*") -> Callable[[Path], object]:
    def rewrite(root: Path) -> None:
        for path in root.glob(f"*/{chosen}_mask.tif"):
            mask = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
            path.write_bytes(encode_picture(change(mask), ".tif"))

    return _dataset(rewrite)


def _resize_first(here: Path) -> None:
    big = np.zeros((64, 64, 3), np.uint8)
    _write_slice(_write_lgg(here) / "P1", "P1_1", big, big[:, :, 0])


def _grey_twins(root: Path) -> None:
    image = _pixels("P9", 1)[0]
    for patient in ("P1", "P2"):
        _write_slice(root / patient, f"{patient}_9", image, np.zeros((SIDE, SIDE), np.uint8))


def _one_level_deeper(root: Path) -> None:
    (root / "others").mkdir()
    (root / "P3").rename(root / "others" / "P3")


def _without_masks(root: Path) -> None:
    for mask in (root / "P3").glob("*_mask.tif"):
        mask.unlink()


def _described(text: str) -> Callable[[Path], object]:
    return _dataset(lambda root: (root / "dataset.yaml").write_text(text))


LIST = "manifest: list.csv\nchannels: [a, b, c]\n"


def _listed(content: Fault) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / "dataset.yaml").write_text(LIST)
        _put(root / "list.csv", content)

    return _dataset(change)


def _manifest(*rows: tuple[str, ...]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([("image", "mask", "patient"), *rows])
    return file.getvalue().encode()


def _named(name: bytes) -> Callable[[Path], object]:
    """Give a patient's slice a name of any bytes."""

    def change(root: Path) -> None:
        for ending in (b".tif", b"_mask.tif"):
            old = os.fsencode(root / "P3" / "P3_1") + ending
            os.rename(old, os.fsencode(root / "P3") + b"/" + name + ending)  # noqa: PTH104

    return _dataset(change)


FOLDERS = [
    *(
        Case(f"a patient of {suffix}", LGG, 0, ("6 files are not used", f"P3_1{suffix}"), prepare)
        for suffix, prepare in (
            (
                suffix,
                _dataset(
                    lambda root, suffix=suffix: [  # type: ignore[misc]
                        path.rename(path.with_suffix(suffix)) for path in (root / "P3").iterdir()
                    ]
                ),
            )
            for suffix in (".TIF", ".tiff", ".png", ".jpg", ".bmp", ".dcm", ".nii")
        )
    ),
    Case("one level deeper", LGG, 0, ("others/P3/P3_1.tif",), _dataset(_one_level_deeper)),
    Case("a folder without masks", LGG, 0, ("3 files", "P3/P3_1.tif"), _dataset(_without_masks)),
    Case("an empty folder", LGG, 0, ("P4/",), _dataset(lambda root: (root / "P4").mkdir())),
    Case("a stray file", LGG, 0, ("notes.docx",), _dataset(lambda r: (r / "notes.docx").touch())),
    Case(
        "a stray name with an escape",
        LGG,
        0,
        ("\\x1b[31m.xyz",),
        _dataset(lambda root: (root / "P1" / "\x1b[31m.xyz").touch()),
    ),
    Case(
        "a stray name that is not UTF-8",
        LGG,
        0,
        ("P1/\\udcff.xyz",),
        _dataset(lambda root: (root / "P1" / os.fsdecode(b"\xff.xyz")).touch()),
    ),
    Case("all of them PNG", LGG, 1, ("no patient folders", "P1_1.png"), _rename(".tif", ".png")),
    Case(
        "a plan says it too",
        PLAN,
        1,
        ("6 files are not used", "P3_1.tiff", "2 patients"),
        _dataset(lambda root: [p.rename(p.with_suffix(".tiff")) for p in (root / "P3").iterdir()]),
    ),
    # The folder itself.
    Case("no folder", LGG, 1, ("does not exist",)),
    Case("an empty data folder", LGG, 1, ("holds nothing",), lambda h: (h / "data").mkdir()),
    Case("a file", LGG, 1, ("data is not a folder",), lambda here: (here / "data").touch()),
    Case("a pipe", LGG, 1, ("data is not a folder",), lambda here: os.mkfifo(here / "data")),
    Case(
        "a link to itself",
        LGG,
        1,
        ("does not exist",),
        lambda here: (here / "data").symlink_to(here / "data"),
    ),
    Case(
        "one patient's folder",
        ("brainseg.explore.__main__", "--data", "{here}/data/P1", "--check"),
        1,
        ("give the folder above",),
        _write_lgg,
    ),
    Case(
        "a link to nowhere as an image",
        LGG,
        1,
        ("P3_9.tif",),
        _dataset(lambda root: (root / "P3" / "P3_9.tif").symlink_to("nowhere")),
    ),
    # Leaks.
    Case("two dates", LGG, 0, ("P1 and P1_20210101",), _more("P1_20210101", "x_1", "P8", 1)),
    Case("other case", LGG, 0, ("P1 and p1",), _more("p1", "p1_1", "P8", 1)),
    Case(
        "a copy",
        LGG,
        0,
        ("1 slices are copies", "P1_1 - Copy"),
        _more("P1", "P1_1 - Copy", "P1", 1),
    ),
    Case("two owners", LGG, 1, ("of another patient", "P4_1"), _more("P4", "P4_1", "P1", 1)),
    Case(
        "two owners of a slice without tumour",
        LGG,
        0,
        ("1 slices without tumour belong to two patients", "P2_9: the same pixels as P1_9"),
        _dataset(_grey_twins),
    ),
    Case(
        "two owners, one of whom has no mask drawn",
        LGG,
        1,
        ("of another patient",),
        _dataset(
            lambda root: _write_slice(
                root / "P4", "P4_1", _pixels("P1", 1)[0], np.zeros((SIDE, SIDE), np.uint8)
            )
        ),
    ),
    # Masks and sizes.
    Case("the first of another size", LGG, 1, ("1 of 9", "P1_1: 64 pixels wide"), _resize_first),
    Case("all masks inverted", LGG, 1, ("9 of 9 masks", "inverted"), _remask(lambda m: 255 - m)),
    Case("one inverted", LGG, 1, ("P2_2", "inverted"), _remask(lambda m: 255 - m, "P2_2")),
    Case(
        "all masks empty", LGG, 1, ("none of the 9 masks holds tumour",), _remask(lambda m: m * 0)
    ),
    Case("grey masks", LGG, 1, ("values 0, 127",), _remask(lambda m: m // 2)),
    Case(
        "masks without the named values",
        LGG,
        1,
        ("none of the 9 masks holds the values 4, 5",),
        _described(
            'images: "{patient}/{name}.tif"\nmasks: "{patient}/{name}_mask.tif"\n'
            "channels: [a, b, c]\ntumour: [4, 5]\n"
        ),
    ),
    # Names.
    Case("name not UTF-8", LGG, 1, ("rename them", "\\udcff"), _named(b"\xff1")),
    Case("name with a newline", LGG, 1, ("rename them", "a\\nb"), _named(b"a\nb")),
    Case("name with an escape", LGG, 1, ("rename them", "\\x1b[31m"), _named(b"\x1b[31m")),
    Case("an exotic name", LGG, 0, ("No file is wrong",), _named("Schädel 💀 {0} %s".encode())),
    # data.csv.
    *(
        Case(
            f"data.csv {fault}",
            ("brainseg.explore.__main__", "--data", "{here}/data", "--out", "{here}/out"),
            1,
            ("data.csv", words),
            _dataset(lambda root, content=content: _put(root / "data.csv", content)),  # type: ignore[misc]
        )
        for fault, content, words in (
            ("a pipe", os.mkfifo, "pipe"),
            ("a folder", Path.mkdir, "is a folder"),
            ("of UTF-16", "Patient,age\nP1,3\n".encode("utf-16"), "UTF-8"),
            ("of a long cell", b"Patient,age\nP1," + b"x" * 200_000 + b"\n", "line 2"),
            ("without patients", b"name,age\nP1,3\n", "Patient"),
        )
    ),
    # dataset.yaml and manifests.
    *(
        Case(
            f"dataset.yaml {fault}",
            LGG,
            1,
            ("dataset.yaml", words),
            _dataset(lambda root, content=content: _put(root / "dataset.yaml", content)),  # type: ignore[misc]
        )
        for fault, content, words in (
            ("a pipe", os.mkfifo, "pipe"),
            ("a folder", Path.mkdir, "is a folder"),
            ("a link to nowhere", lambda path: path.symlink_to("nowhere"), "No such file"),
            ("empty", b"", "expected name"),
            ("a list", b"- 1\n", "expected name"),
            ("not UTF-8", b"\xff\xfe\xfd", "cannot read"),
            ("deep", b"[" * 5000, "cannot read"),
            ("long", b"#" * 2**21, "more than"),
            ("no YAML", b"a: [\n", "cannot read"),
            ("a null", b"images: null\n", "give images and masks"),
        )
    ),
    *(
        Case(f"manifest {fault}", LGG, 1, ("list.csv", words), _listed(content))
        for fault, content, words in (
            ("a pipe", os.mkfifo, "pipe"),
            ("a folder", Path.mkdir, "is a folder"),
            ("empty", b"", "is empty"),
            ("of UTF-16", "image,mask\n".encode("utf-16"), "UTF-8"),
            ("of a long cell", b"image,mask,patient\n" + b"x" * 200_000, "line 2"),
            ("with a pipe", _manifest(("P1/P1_1.tif", "pipe.tif", "P1")), "pipe.tif"),
            ("with a NUL", b"image,mask,patient\nP1/P1_1.tif,a\0b.tif,P1\n", "0x00"),
            (
                "leaving the folder",
                _manifest(("../x.tif", "P1/P1_1_mask.tif", "P1")),
                "is not a path",
            ),
            ("of short rows", b"image,mask,patient\nP1/P1_1.tif\n", "line 2"),
        )
    ),
    Case(
        "a patient with a newline in a manifest",
        LGG,
        1,
        ("rename them", "P\\n1"),
        _listed(_manifest(("P1/P1_1.tif", "P1/P1_1_mask.tif", "P\n1"))),
    ),
    # Splits.
    *(
        Case(
            f"split file {fault}",
            (*PLAN, "--split", "{here}/split.yaml"),
            code,
            ("split.yaml", words),
            _dataset(lambda root, content=content: _put(root.parent / "split.yaml", content)),  # type: ignore[misc]
        )
        for fault, content, code, words in (
            ("a pipe", os.mkfifo, 1, "pipe"),
            ("a folder", Path.mkdir, 1, "folder"),
            ("a link to nowhere", lambda path: path.symlink_to("nowhere"), 1, "No such file"),
            ("deep", b"[" * 5000, 2, "cannot read"),
            ("not UTF-8", b"\xff\xfe\xfd", 2, "cannot read"),
            ("of nothing", b"", 2, "train"),
            ("of other patients", b"{train: [P1], val: [P2], test: [P4]}", 2, "no patient P4"),
        )
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [*_file_cases(), *_volume_cases(), *FOLDERS], ids=lambda case: case.name
)
def test_a_dataset_that_cannot_be_used_is_answered(case: Case, answer: Answer) -> None:
    answer(case)


# Inputs of predict: all in one folder, so that the network is built once.


def _inputs() -> dict[str, tuple[Fault, str]]:
    found: dict[str, tuple[Fault, str]] = {}
    for suffix, form in FORMS.items():
        for fault, (content, words) in _image_faults(form, _pixels("P2", 2)[0]).items():
            found[f"{form} {fault}{suffix}"] = (content, words)
    for suffix in (".nii", ".nii.gz"):
        for fault, (content, words) in _volume_faults(3).items():
            found[f"{suffix[1:].replace('.', ' ')} {fault}{suffix}"] = (
                _packed(content, suffix),
                words,
            )
    folders = [name for name, (content, _) in found.items() if content is Path.mkdir]
    return {name: found[name] for name in found if name not in folders}  # they are searched


INPUTS = _inputs()


@pytest.fixture(scope="module")
def answered(
    model_file: Path, data: SliceStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path, Path]:
    here = tmp_path_factory.mktemp("predict")
    (here / "in").mkdir()
    for name, (content, _) in INPUTS.items():
        _put(here / "in" / name, content)
        # The same fault, as the true mask of an image that is good.
        stem = name.replace(".", " of ").replace(" of gz", "gz")
        suffix = "".join(Path(name).suffixes)
        if suffix.startswith(".nii"):
            _put(here / "in" / f"mask {stem}{suffix}", _packed(_volume(3), suffix))
            _put(here / "in" / f"mask {stem}_mask{suffix}", content)
        elif suffix != ".jpg":
            good = encode_picture(data.image(2), suffix)
            (here / "in" / f"mask {stem}{suffix}").write_bytes(good)
            _put(here / "in" / f"mask {stem}_mask{suffix}", content)
    (here / "in" / "good.png").write_bytes(encode_picture(data.image(2)))
    (here / "in" / "a\nb.png").write_bytes(encode_picture(data.image(2)))
    (here / "in" / os.fsdecode(b"\xff.png")).write_bytes(encode_picture(data.image(2)))
    with (here / "err").open("w+", encoding="utf-8") as err, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", err)
        code = predict.main(
            [str(model_file), str(here / "in"), str(here / "none.tif"), "--out", str(here / "out")]
        )
    return code, here / "err", here / "out"


@pytest.mark.parametrize("name", [*INPUTS, "none.tif", "a\\nb.png", "\\udcff.png"])
def test_an_input_that_cannot_be_predicted_is_named(
    name: str, answered: tuple[int, Path, Path]
) -> None:
    code, err, _ = answered
    words = INPUTS.get(name, (b"", ""))[1]
    lines = [line for line in err.read_text().splitlines() if f"/{name}: " in line]
    assert code == 3
    assert len(lines) == 1
    assert words in lines[0]


@pytest.mark.parametrize("name", [name for name in INPUTS if not name.endswith(".jpg")])
def test_a_true_mask_that_cannot_be_used_is_named(
    name: str, answered: tuple[int, Path, Path]
) -> None:
    _, err, _ = answered
    stem = name.replace(".", " of ").replace(" of gz", "gz")
    assert f"mask {stem}_mask" in err.read_text()


def test_the_others_are_predicted(answered: tuple[int, Path, Path]) -> None:
    _, err, out = answered
    assert "Traceback" not in err.read_text()
    assert [Path(row["file"]).name for row in read_rows(out / "predictions.csv")] == ["good.png"]


# Model files.


def _scaled(factor: float) -> Callable[[Path, Path], object]:
    def write(path: Path, model: Path) -> None:
        weights = load_file(model)
        last = [name for name, values in weights.items() if values.is_floating_point()][-1]
        weights = {
            name: values * factor if values.is_floating_point() and name != last else values
            for name, values in weights.items()
        }
        save_model(path, weights, read_header(model))

    return write


def _one_weight(value: float) -> Callable[[Path, Path], object]:
    def write(path: Path, model: Path) -> None:
        weights = load_file(model)
        next(v for v in weights.values() if v.is_floating_point()).view(-1)[0] = value
        save_model(path, weights, read_header(model))

    return write


MODELS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "one NaN": (_one_weight(float("nan")), "m.safetensors holds weights that are infinite or NaN"),
    "one infinity": (_one_weight(float("inf")), "m.safetensors holds weights"),
    "overflows": (_scaled(1e30), "gives values that are infinite or NaN"),
    "a pipe": (lambda path, model: os.mkfifo(path), "pipe"),
    "a folder": (lambda path, model: path.mkdir(), "is a folder"),
    "empty": (lambda path, model: path.touch(), "cannot read the model file"),
    "half": (
        lambda path, model: path.write_bytes(model.read_bytes()[:100_000]),
        "cannot read the model file",
    ),
    "without a header": (
        lambda path, model: save_file({"a": torch.zeros(1)}, path),
        "its header is missing",
    ),
    "another network's": (
        lambda path, model: save_model(path, {"a": torch.zeros(1)}, read_header(model)),
        "do not fit the network",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_predict_is_refused(
    name: str, model_file: Path, tmp_path: Path, answer: Answer
) -> None:
    write, words = MODELS[name]

    def prepare(here: Path) -> None:
        (here / "s.tif").write_bytes(encode_picture(_pixels("P1", 1)[0], ".tif"))
        write(here / "m.safetensors", model_file)

    argv = ("brainseg.predict", "{here}/m.safetensors", "{here}/s.tif", "--out", "{here}/out")
    case = Case(name, argv, 1, (words,), prepare)
    answer(case)
    assert not (tmp_path / "here" / "out").exists()


# What is read, is read as it is.


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_an_accepted_image_has_the_pixels_of_another_decoder(
    mode: str, suffix: str, tmp_path: Path
) -> None:
    from brainseg.data.description import read_values

    rgb = Image.fromarray(_pixels("P1", 1)[0])
    image = Image.fromarray(np.asarray(rgb.convert("L"), np.uint16) * 200)
    image = image if mode == "I;16" else rgb.convert(mode)
    image.save(tmp_path / f"a{suffix}")
    expected = np.asarray(image).astype(int) * (255 if mode == "1" else 1)
    assert np.array_equal(read_values(tmp_path / f"a{suffix}")[0], expected)
