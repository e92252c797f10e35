"""The slice store: a dataset, checked and decoded once per machine into a memory-mapped array.

All processes of a machine map the same file and thus share one copy in memory. It is in the user's
cache folder (`BRAINSEG_CACHE` moves it), never beside the data.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import ValidationError

from brainseg.data.about import CHANNELS, LGG, About
from brainseg.data.description import (
    DESCRIPTION_FILE,
    DatasetFiles,
    Description,
    Spacing,
    find_files,
    read_description,
)
from brainseg.data.image_files import is_writable_name, show_name
from brainseg.data.layouts import (
    ImageFiles,
    describe_unused,
    find_default_root,
    find_namesakes,
    find_root,
    find_slices,
)
from brainseg.data.phantom import MARKER, VERSION, generate_phantom
from brainseg.data.store_builder import (
    FORMAT,
    PIXELS_FILE,
    TABLE_FILE,
    Slice,
    StoreTable,
    build_store,
)
from brainseg.errors import DataError
from brainseg.storage.files import FAR_WAITS, cache_folder, damage_checksum, retry_storage
from brainseg.storage.remote import RemoteFolder, pull, require_store
from brainseg.storage.urls import Location, is_url

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
        return np.memmap(self.folder / PIXELS_FILE, np.uint8, mode="r")

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
        table = _read_table(store) or build_store(store, files.items, description)
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
    digest = hashlib.sha256(f"{FORMAT} {root}".encode(errors="surrogateescape"))
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


def _read_table(folder: Path) -> StoreTable | None:
    """The table of a store, or None if there is no store or it is damaged."""
    try:
        digest, _, text = (folder / TABLE_FILE).read_bytes().partition(b"\n")
        if digest.decode("latin-1") != hashlib.sha256(text).hexdigest():
            return None
        table = StoreTable.model_validate_json(text)
        return table if damage_checksum(folder / PIXELS_FILE) == table.checksum else None
    except (OSError, ValidationError):
        return None
