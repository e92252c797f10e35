"""The slice store: a dataset, checked and decoded once per machine into a memory-mapped array.

All processes of a machine map the same file and thus share one copy in memory. It is in the user's
cache folder (`BRAINSEG_CACHE` moves it), never beside the data.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from brainseg.data.about import CHANNELS, LGG, About
from brainseg.data.description import (
    DESCRIPTION_FILE,
    DatasetFiles,
    Description,
    Spacing,
    find_files,
    read_description,
    read_patient,
)
from brainseg.data.image_files import is_writable_name, show_name
from brainseg.data.layouts import (
    ImageFiles,
    describe_unused,
    find_default_root,
    find_namesakes,
    find_root,
    find_slices,
    read_slice,
)
from brainseg.data.phantom import MARKER, VERSION, generate_phantom
from brainseg.errors import DataError
from brainseg.storage.files import FAR_WAITS, cache_folder, retry_storage, write_folder, write_text
from brainseg.storage.remote import RemoteFolder, pull, require_store
from brainseg.storage.urls import Location, is_url

_FORMAT = 6
_PIXELS, _TABLE = "slices.bin", "table.json"
_AHEAD = 32
_BLOCK, _SUMMED = 2**20, 2**32
_FILLED = 0.5
"""The share of a slice above which its mask is taken for an inverted one."""
_UNUSED = (
    "are not used (a slice is NAME.tif with NAME_mask.tif beside it, in a folder per patient; "
    "another layout needs a dataset.yaml, see docs/data.md)"
)
PHANTOM = "phantom://"
"""The URL of the generated dataset, which every machine generates for itself."""

_FETCHED = (
    *(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".nii", ".nii.gz"),
    *(".csv", MARKER, DESCRIPTION_FILE),
)


@dataclass(frozen=True, slots=True)
class Slice:
    """A slice of the store.

    Attributes:
        name: Its name.
        patient: Its patient.
        tumour_pixels: Number of its tumour pixels.
        scan: Which of the patient's examinations it is of.
    """

    name: str
    patient: str
    tumour_pixels: int
    scan: str = ""

    @property
    def volume(self) -> tuple[str, str]:
        """Patient and scan, which slices of one volume share."""
        return self.patient, self.scan


@dataclass(frozen=True)
class SliceStore:
    """A checked dataset. It pickles without its pixels, which the receiving process maps.

    Attributes:
        folder: Folder of the decoded array.
        root: Dataset folder that it was decoded from.
        source: Location that another machine opens: the dataset folder or its URL.
        fingerprint: SHA-256 of the names and pixels of all slices, in order.
        synthetic: Whether the dataset was generated.
        slices: Slices in natural order of their paths, a patient's together.
        shapes: Height and width of each slice in pixels, as stored.
        notes: Sentences to print.
        channels: Names of the C channels of an image.
        about: What a report says of the dataset.
        covariates: Patient -> further columns of the dataset's manifest.
        spacings: Millimetres from row to row and from column to column of each slice; empty unless
            the header of every file gives them.
        described: Whether a `dataset.yaml` describes it; otherwise it has the LGG layout.
    """

    folder: Path
    root: Path
    source: Location
    fingerprint: str
    synthetic: bool
    slices: tuple[Slice, ...]
    shapes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    channels: tuple[str, ...] = CHANNELS
    about: About = LGG
    covariates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    spacings: tuple[Spacing, ...] = ()
    described: bool = False

    @cached_property
    def flat(self) -> NDArray[np.uint8]:
        """All slices one after the other, uint8, read-only: (H, W, C + 1) each, the mask last."""
        return np.memmap(self.folder / _PIXELS, np.uint8, mode="r")

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        sizes = [height * width * (len(self.channels) + 1) for height, width in self.shapes]
        return np.cumsum([0, *sizes])

    @property
    def size(self) -> int:
        """Longest side of a slice in pixels."""
        return max(max(shape) for shape in self.shapes)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 (N, H, W, C + 1), read-only, of a dataset whose slices have one size.

        Raises:
            DataError: If they have several sizes.
        """
        if len(set(self.shapes)) > 1:
            raise DataError(f"the slices of {self.root} have several sizes: they make no array")
        return self.flat.reshape(-1, *self.shapes[0], len(self.channels) + 1)

    @property
    def num_tumour_slices(self) -> int:
        """Number of slices with tumour."""
        return sum(item.tumour_pixels > 0 for item in self.slices)

    @property
    def patients(self) -> list[str]:
        """Patients in order of appearance."""
        return list(dict.fromkeys(item.patient for item in self.slices))

    def spacing(self, index: int) -> Spacing | None:
        """Return the spacing of a slice in millimetres, see `spacings`; None if not known."""
        return self.spacings[index] if self.spacings else None

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the image of a slice, uint8 (H, W, C)."""
        return np.ascontiguousarray(self._slice(index)[:, :, :-1])

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the mask of a slice, uint8 (H, W), 1 for tumour."""
        return np.ascontiguousarray(self._slice(index)[:, :, -1])

    def _slice(self, index: int) -> NDArray[np.uint8]:
        start, end = self._starts[index], self._starts[index + 1]
        return self.flat[start:end].reshape(*self.shapes[index], -1)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "flat"}


class _Table(BaseModel):
    """What is stored beside the pixels, after a line with its own SHA-256."""

    fingerprint: str
    checksum: str
    slices: tuple[Slice, ...]
    shapes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    spacings: tuple[Spacing, ...] = ()


def open_dataset(path: Location) -> SliceStore:
    """Open the slice store of a dataset; check the dataset and build the store if there is none.

    Args:
        path: The kaggle_3m folder, its parent, or the root of the Kaggle archive; or the URL of
            one of these, which is copied to this machine's cache as far as it is not there
            already.

    Raises:
        DataError: If the folder or a file cannot be used; `problems` lists every file.
        StorageError: If a URL cannot be read.
    """
    folder = Path(_fetch(str(path)) if is_url(path) else path).expanduser()
    description = read_description(folder)
    try:
        root, files = _find(folder, description)
        signature = _signature(root, files.items)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    store = cache_folder("slices") / signature
    with FileLock(f"{store}.lock"):
        table = _read_table(store) or _build(store, files.items, description)
    slices = tuple(table.slices)
    return SliceStore(
        folder=store,
        root=root,
        source=path if is_url(path) else root,
        fingerprint=table.fingerprint,
        synthetic=(root / MARKER).exists(),
        slices=slices,
        shapes=table.shapes,
        notes=(
            *files.notes,
            *find_namesakes(dict.fromkeys(item.patient for item in slices)),
            *table.notes,
        ),
        channels=description.channel_names if description else CHANNELS,
        about=description.about if description else LGG,
        covariates=files.covariates,
        spacings=table.spacings,
        described=description is not None,
    )


def checksum(path: Path) -> str:
    """Return a hash of the sums of a file's blocks of 1 MiB, which takes 0.04 s for 1 GiB.

    Each changed bit and each missing block changes it, up to 4 GiB; of a larger file every second,
    third, ... block is read. It finds damage, not malice.
    """
    raw = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    whole = raw.size // 8 * 8
    words, length = raw[:whole].view(np.uint64), _BLOCK // 8
    step = length * max(1, -(-raw.size // _SUMMED))
    starts = range(0, len(words), step)
    sums = np.array([words[start : start + length].sum() for start in starts], np.uint64)
    content = f"{raw.size} ".encode() + sums.tobytes() + raw[whole:].tobytes()
    return hashlib.sha256(content).hexdigest()


def open_default(path: Location | None) -> SliceStore:
    """Open the dataset that a command was given, else the default one, else a generated one.

    Raises:
        DataError: If it cannot be used.
        StorageError: If it is behind a URL that does not answer.
    """
    source = path or find_default_root()
    require_store(source or Path())
    return open_dataset(source or PHANTOM)


def _fetch(url: str) -> Path:
    """Return this machine's copy of a dataset behind a URL, made equal to it.

    Processes that ask at the same time wait for one of them.
    """
    if url == PHANTOM:
        return generate_phantom(cache_folder("phantom") / f"version-{VERSION}")
    remote = RemoteFolder(url)
    folder = cache_folder("data") / hashlib.sha256(url.encode()).hexdigest()[:24]
    with FileLock(f"{folder}.lock"):

        def fetch() -> int:
            remote.require()  # a bucket that is gone would pass for an empty one
            return len(pull(remote, folder, _is_fetched, what="fetching slices"))

        if not retry_storage(fetch, f"the copy of {url}", FAR_WAITS):
            raise DataError(f"nothing is below {url}: give the URL of the kaggle_3m folder")
    return folder


def _is_fetched(name: str) -> bool:
    return name.lower().endswith(_FETCHED) and not any(part[0] == "." for part in name.split("/"))


def _find(folder: Path, description: Description | None) -> tuple[Path, DatasetFiles]:
    """Return a dataset's root and files; refuse names that no table can hold."""
    if description is None:
        root, notes = find_root(folder)
        items = tuple(find_slices(root))
        used = [path for item in items for path in (*item.images, item.mask)]
        notes += describe_unused(root, used, _UNUSED)
        files = DatasetFiles(items, {}, tuple(notes))
    else:
        root = folder.resolve()
        files = find_files(root, description)
    names = dict.fromkeys(f"{item.images[0]} {item.patient} {item.name}" for item in files.items)
    if bad := [show_name(name) for name in names if not is_writable_name(name)]:
        raise DataError(
            f"{len(bad)} files in {show_name(str(root))} have names with control characters, or "
            "that are not UTF-8, which no table can hold: rename them",
            bad,
        )
    counts = Counter((item.patient, item.name) for item in files.items)
    if twice := [f"{patient}: {name}" for (patient, name), n in counts.items() if n > 1]:
        raise DataError(
            f"{len(twice)} images in {show_name(str(root))} share patient and name with another: "
            "rename the files, or make these patients two",
            [show_name(name) for name in twice],
        )
    return root, files


def _signature(root: Path, items: Sequence[ImageFiles]) -> str:
    """A hash of the dataset's state, without decoding it: a changed file gives another store."""
    digest = hashlib.sha256(f"{_FORMAT} {root}".encode(errors="surrogateescape"))
    paths = [path for item in items for path in (*item.images, item.mask)]
    description = root / DESCRIPTION_FILE
    if description.exists():  # its manifest may give other names and patients to the same files
        paths.append(description)
        names = "".join(f"\n{item.patient}\0{item.name}" for item in items)
        digest.update(names.encode(errors="surrogateescape"))
    for path in paths:
        stat = path.stat()
        digest.update(
            f"\n{path} {stat.st_size} {stat.st_mtime_ns}".encode(errors="surrogateescape")
        )
    return digest.hexdigest()[:24]


def _read_table(folder: Path) -> _Table | None:
    """The table of a store, or None if there is no store or it is damaged."""
    try:
        digest, _, text = (folder / _TABLE).read_bytes().partition(b"\n")
        if digest.decode("latin-1") != hashlib.sha256(text).hexdigest():
            return None
        table = _Table.model_validate_json(text)
        return table if checksum(folder / _PIXELS) == table.checksum else None
    except (OSError, ValidationError):
        return None


class _Found(NamedTuple):
    """All slices of a dataset: their sizes, the hashes of their pixels and of their images."""

    slices: list[Slice]
    shapes: list[tuple[int, int]]
    hashes: list[str]
    images: list[str]
    spacings: list[Spacing | None]


Decoded = list[tuple[Slice, NDArray[np.uint8], Spacing | None]]
"""Slices with their pixels, uint8 (H, W, C + 1), and their spacing if it is known."""


def _build(folder: Path, items: Sequence[ImageFiles], description: Description | None) -> _Table:
    # The lock is held, so these are of processes that died.
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover)
    if description is None:
        read: Callable[[Sequence[ImageFiles]], Decoded] = _read_lgg
        units = [[item] for item in items]
    else:
        read = functools.partial(_read_described, description=description)
        units = [list(own) for _, own in itertools.groupby(items, key=lambda i: i.patient)]
    with write_folder(folder) as aside:
        _check_space(aside, 0 if description else len(items) * _first_bytes(items))
        with (aside / _PIXELS).open("wb") as file:
            decoded = _decode_all(units, read, file)
        _check_masks(decoded, description)
        if description is None:
            _check_sizes(decoded)
        names = _whole_names(decoded.slices, described=description is not None)
        lines = "".join(f"{name} {h}\n" for name, h in zip(names, decoded.hashes, strict=True))
        table = _Table(
            fingerprint=hashlib.sha256(lines.encode()).hexdigest(),
            checksum=checksum(aside / _PIXELS),
            slices=tuple(decoded.slices),
            shapes=tuple(decoded.shapes),
            notes=(*_find_copies(decoded), *_note_spacing(decoded)),
            spacings=_common_spacings(decoded),
        )
        text = table.model_dump_json()
        write_text(aside / _TABLE, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        shutil.rmtree(folder, ignore_errors=True)
    return table


def _whole_names(slices: Sequence[Slice], *, described: bool) -> list[str]:
    """Return names that identify slices across patients and scans.

    A slice of the LGG dataset is called after its folder; one of a described dataset has its
    patient before its name, and its scan where the patient has several.
    """
    scans = Counter(patient for patient, _ in {item.volume for item in slices})
    names = []
    for item in slices:
        parts = [item.patient, item.name] if described else [item.name]
        needed = scans[item.patient] > 1 or not described
        if needed and not item.name.startswith(f"{item.scan}_"):
            parts.insert(-1, item.scan)
        names.append("/".join(parts))
    return names


def _first_bytes(items: Sequence[ImageFiles]) -> int:
    """The bytes of the first slice that can be read, by which the space needed is estimated."""
    for item in items:
        try:
            return read_slice(item)[1].size * (len(CHANNELS) + 1)
        except DataError:
            continue
    return 0


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"the slice store needs {needed / 1e9:.1f} GB in {folder.parent}, "
            f"which has {free / 1e9:.1f} GB free; set BRAINSEG_CACHE to a larger disk"
        )


def _read_lgg(items: Sequence[ImageFiles]) -> Decoded:
    """Decode a slice of the LGG layout."""
    (item,) = items
    image, mask = read_slice(item)
    found = Slice(item.name, item.patient, int(mask.sum()), item.scan)
    return [(found, np.dstack([image, mask]), None)]


def _read_described(items: Sequence[ImageFiles], description: Description) -> Decoded:
    """Decode all slices of a patient of a described dataset."""
    return [
        (
            Slice(one.name, items[0].patient, int(one.mask.sum()), one.scan),
            np.dstack([one.image, one.mask]),
            one.spacing,
        )
        for one in read_patient(items, description)
    ]


def _decode_all(
    units: Sequence[Sequence[ImageFiles]],
    read: Callable[[Sequence[ImageFiles]], Decoded],
    file: BinaryIO,
) -> _Found:
    """Write the pixels of all slices.

    All files are read before the problems of all are raised together.
    """

    def attempt(unit: Sequence[ImageFiles]) -> Decoded | str:
        try:
            return read(unit)
        except DataError as error:
            return f"{unit[0].images[0].parent.name}/{error}"

    found = _Found([], [], [], [], [])
    problems: list[str] = []
    total = sum(len(unit) for unit in units)
    with (
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=total, desc="checking slices", unit="slice", disable=None) as bar,
    ):
        # A few at a time: what is decoded faster than it is written would fill the memory.
        for start in range(0, len(units), _AHEAD):
            chunk = units[start : start + _AHEAD]
            for unit, decoded in zip(chunk, pool.map(attempt, chunk), strict=True):
                bar.update(len(unit))
                if isinstance(decoded, str):
                    problems.append(decoded)
                    continue
                for item, pixels, spacing in decoded:
                    content = pixels.tobytes()
                    file.write(content)
                    found.slices.append(item)
                    found.shapes.append((pixels.shape[0], pixels.shape[1]))
                    found.hashes.append(hashlib.blake2b(content, digest_size=16).hexdigest())
                    found.images.append(_hash_image(pixels[:, :, :-1]))
                    found.spacings.append(spacing)
    if problems:
        what = "slices" if total == len(units) else "patients"
        raise DataError(f"{len(problems)} of {len(units)} {what} cannot be used", problems)
    return found


def _hash_image(image: NDArray[np.uint8]) -> str:
    """A hash of an image alone; empty for one without content, which many patients may have."""
    if (image == image[0, 0]).all():
        return ""
    return hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()


def _check_masks(found: _Found, description: Description | None) -> None:
    """Refuse masks that are all empty, or inverted.

    A slice of a described dataset may be mostly tumour, such as one cut around it.
    """
    sizes = [height * width for height, width in found.shapes]
    shares = [item.tumour_pixels / n for item, n in zip(found.slices, sizes, strict=True)]
    values = description.tumour if description else None
    if not any(shares):
        named = f"the values {', '.join(map(str, values))}" if values else "tumour"
        raise DataError(
            f"none of the {len(shares)} masks holds {named}: are these the masks of these images?"
        )
    filled = [
        f"{item.name}: {share:.0%} of its mask is tumour; is it inverted?"
        for item, share in zip(found.slices, shares, strict=True)
        if share > _FILLED
    ]
    if 2 * len(filled) > len(shares) and values is None:
        raise DataError(
            f"{len(filled)} of {len(shares)} masks are mostly tumour, so they seem to be "
            "inverted: 0 stands for no tumour, 255 or 1 for tumour. If they are right, name "
            "tumour: [255] in a dataset.yaml (docs/data.md)"
        )
    if filled and description is None:
        raise DataError(f"{len(filled)} of {len(shares)} slices cannot be used", filled)


def _check_sizes(found: _Found) -> None:
    """Refuse slices of the LGG layout that are not of the size that most have."""
    usual = Counter(found.shapes).most_common(1)[0][0]
    problems = [
        f"{item.name}: {shape[0]} pixels wide; most slices are {usual[0]}"
        for item, shape in zip(found.slices, found.shapes, strict=True)
        if shape != usual
    ]
    if problems:
        raise DataError(f"{len(problems)} of {len(found.slices)} slices cannot be used", problems)


def _common_spacings(found: _Found) -> tuple[Spacing, ...]:
    """Return the spacing of every slice; none if some slices have none."""
    known = [spacing for spacing in found.spacings if spacing is not None]
    return tuple(known) if len(known) == len(found.slices) else ()


def _note_spacing(found: _Found) -> list[str]:
    missing = found.spacings.count(None)
    if missing in (0, len(found.slices)):
        return []
    return [
        f"{missing} of {len(found.slices)} slices have no spacing in their file's header: no "
        "distance is given in millimetres, unless data.spacing_mm is set"
    ]


def _find_copies(found: _Found) -> list[str]:
    """Return sentences on slices that are there twice.

    Raises:
        DataError: If a slice with tumour is there of two patients: it could be in training and in
            test.
    """
    owners: dict[str, list[Slice]] = {}
    for item, digest in zip(found.slices, found.images, strict=True):
        if digest:
            owners.setdefault(digest, []).append(item)
    shared: list[str] = []
    foreign: list[str] = []
    own: list[str] = []
    for first, *others in owners.values():
        with_tumour = any(item.tumour_pixels for item in (first, *others))
        for item in others:
            if item.patient == first.patient:
                own.append(f"{item.name} is {first.name}")
            else:
                words = f"{item.name}: the same pixels as {first.name}, of another patient"
                (shared if with_tumour else foreign).append(words)
    if shared:
        raise DataError(f"{len(shared)} slices belong to two patients", shared)
    notes = []
    if foreign:
        notes.append(
            f"{len(foreign)} slices without tumour belong to two patients, who may be one: "
            f"{', '.join(foreign[:3])}{' ...' if foreign[3:] else ''}"
        )
    if own:
        notes.append(
            f"{len(own)} slices are copies of another slice of their patient, which then counts "
            f"twice; remove them: {', '.join(own[:3])}{' ...' if own[3:] else ''}"
        )
    return notes
