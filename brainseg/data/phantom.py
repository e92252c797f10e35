"""Generated head MRI with tumours, in the folder layout of the LGG MRI dataset.

A stand-in for machines that hold no patient data: it exercises every step from files to metrics,
and scores on it say nothing about patients. Heads are stacks of analytic shapes (Shepp & Logan,
IEEE Trans. Nucl. Sci. 21, 1974) with the contrast of T1-weighted and FLAIR sequences, textures
are sums of random plane waves, coil shading is a smooth factor (Sled et al., IEEE Trans. Med.
Imaging 17, 1998) and noise is Rician (Gudbjartsson & Patz, Magn. Reson. Med. 34, 1995).

A grid is float32 (3, slices, rows, columns) with the x, y and z of each voxel: x runs over the
columns and y over the rows from -1 to 1, the front of the head at -1; z runs from 0 (skull base)
to 1 (crown). Signals are fractions of full scale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import cv2
import numpy as np
import numpy.typing as npt

from brainseg.errors import DataError
from brainseg.storage.files import read_json, write_folder, write_text

MARKER = "phantom.json"

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

VERSION = 2  # raise when the same arguments, or none, start to give other images
_SITES = ("CS", "DU", "FG", "HT")
_PRE, _FLAIR, _POST = range(3)  # the sequences that the signals below are given for
_FAT = (0.60, 0.52, 0.62)
_FLUID = (0.11, 0.09, 0.12)
_GREY = (0.29, 0.34, 0.31)
_WHITE = (0.37, 0.27, 0.39)
_MUSCLE = (0.27, 0.22, 0.36)


class Patient(NamedTuple):
    """Anatomy, scan and tumour of one patient: all that is random but the noise.

    A number is uniform between the two given. A texture, of about the wavelength given, is
    float32 (waves, 4): radians per unit of x, y and z, and the phase in radians.
    """

    half_width: Annotated[float, 0.60, 0.70]  # the length is 1.23 times the width
    tilt: Annotated[float, -0.1, 0.1]  # radians
    scalp: Annotated[float, 0.035, 0.07]
    skull: Annotated[float, 0.045, 0.08]  # with the fluid below it
    ventricle_width: Annotated[float, 0.04, 0.085]
    caps: Annotated[float, 0.06, 0.24]  # FLAIR signal added at the ventricles' ends and in foci
    gain: Annotated[float, 0.75, 1.3]
    noise: Annotated[float, 0.010, 0.025]  # standard deviation of the real and imaginary parts
    missing: Annotated[float, 0, 1]  # FLAIR replaces pre-contrast below 0.05, post- above 0.95
    tumour_angle: Annotated[float, 0, 2 * np.pi]  # radians around the middle of the head
    tumour_reach: Annotated[float, 0.40, 0.58]  # distance from the middle over the head's size
    tumour_z: Annotated[float, 0.42, 0.70]
    tumour_width: Annotated[float, 0.11, 0.28]  # half-axes
    tumour_length: Annotated[float, 0.13, 0.32]
    tumour_height: Annotated[float, 0.10, 0.27]  # on average 35 % of the slices hold tumour
    tumour_t1: Annotated[float, 0.72, 0.95]  # signals as factors on grey matter
    tumour_flair: Annotated[float, 1.15, 1.55]
    rim: Annotated[float, -0.4, 0.3]  # signal that contrast agent adds to the rim, none below 0
    outline: Annotated[Floats, 1.4]
    folds: Annotated[Floats, 0.22]
    foci: Annotated[Floats, 0.22]
    face: Annotated[Floats, 0.35]
    shading: Annotated[Floats, 2.5]
    tumour_surface: Annotated[Floats, 0.38]


def _draw_patient(rng: np.random.Generator) -> Patient:
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(Patient, include_extras=True).items():
        if len(hint.__metadata__) == 2:
            values[name] = rng.uniform(*hint.__metadata__)
        else:
            waves = rng.standard_normal((24, 3)) * (2 * np.pi / 3**0.5 / hint.__metadata__[0])
            phases = rng.uniform(0, 2 * np.pi, (24, 1))
            values[name] = np.hstack([waves, phases]).astype(np.float32)
    return Patient(**values)


def _head_grid(patient: Patient, slices: int, size: int) -> Floats:
    axis = (np.arange(size) * 2 + 1) / size - 1
    z, y, x = np.meshgrid((np.arange(slices) + 0.5) / slices, axis, axis, indexing="ij")
    cos, sin = np.cos(patient.tilt), np.sin(patient.tilt)
    return np.stack([cos * x + sin * y, cos * y - sin * x, z]).astype(np.float32)


def _texture(waves: Floats, grid: Floats) -> Floats:
    """Sum plane waves to a field of zero mean and unit variance."""
    total = np.zeros_like(grid[0])
    for kx, ky, kz, phase in waves:
        total += np.cos(kx * grid[0] + ky * grid[1] + kz * grid[2] + phase)
    return np.asarray(total * np.sqrt(2 / len(waves)), np.float32)


def _inside(depth: Floats, ramp: float) -> Floats:
    """Return the share of a voxel behind a surface; the ramp stands for the partial volume."""
    return np.asarray(np.clip(0.5 + depth / ramp, 0, 1), np.float32)


def _paint(volume: Floats, weight: Floats, signal: npt.ArrayLike) -> None:
    volume += weight[..., None] * (np.asarray(signal, np.float32) - volume)


def _skin_depth(patient: Patient, grid: Floats) -> Floats:
    """Return roughly the distance below the skin, negative outside the head."""
    x, y, z = grid
    section = np.sqrt(1 - ((z - 0.45) / np.where(z < 0.45, 0.85, 0.62)) ** 2)
    rho = np.hypot(x, y / 1.23) / (patient.half_width * section)
    rho *= 1 + 0.02 * _texture(patient.outline, grid)
    return np.asarray((1 - rho) * section * patient.half_width, np.float32)


def _paint_brain(volume: Floats, patient: Patient, grid: Floats, depth: Floats) -> None:
    """Paint cortex, white matter, ventricles and bright places in FLAIR that are no tumour."""
    x, y, z = grid
    ramp, folds = 2 / volume.shape[1], _texture(patient.folds, grid)
    white = _inside(depth - 0.065 * (1 + 0.7 * folds), 3 * ramp)
    sulci = _inside(folds - 0.7, 1.0) * np.exp(-np.clip(depth, 0, None) / 0.1)
    fissure = np.exp(-((x / 0.025) ** 2)) * np.clip(3 * np.abs(y) - 1, 0, 1)
    bow = (np.abs(x) - 0.07 - 0.9 * y**2) / patient.ventricle_width
    level = np.sqrt(bow**2 + (y / 0.3) ** 2 + ((z - 0.56) / 0.18) ** 2)
    ends = np.exp(-((level**2 - 1.3) ** 2)) * np.clip(np.abs(y) / 0.3 - 0.5, 0, 1)
    foci = 0.8 * white * _inside(_texture(patient.foci, grid) - 2.3, 0.6)
    _paint(volume, np.ones_like(depth), _GREY)
    _paint(volume, white, _WHITE)
    _paint(volume, 0.8 * np.maximum(sulci, fissure), _FLUID)
    volume[..., _FLAIR] += patient.caps * np.maximum(ends, foci)
    _paint(volume, _inside((1 - level) * patient.ventricle_width, ramp), _FLUID)


def _paint_tumour(volume: Floats, patient: Patient, grid: Floats) -> Floats:
    """Paint the tumour; returns its level, above 0 inside and about 1 at the centre."""
    reach = patient.tumour_reach * patient.half_width
    x = (grid[0] - reach * np.cos(patient.tumour_angle)) / patient.tumour_width
    y = (grid[1] - 1.23 * reach * np.sin(patient.tumour_angle)) / patient.tumour_length
    z = (grid[2] - patient.tumour_z) / max(patient.tumour_height, 1 / grid.shape[1])
    rough = 0.3 * np.clip(_texture(patient.tumour_surface, grid), -1.8, 1.8)
    level = np.sqrt(np.clip(1 - z**2, 0, 1)) * (1 + rough) - np.hypot(x, y)
    factors = (patient.tumour_t1, patient.tumour_flair, patient.tumour_t1)
    _paint(volume, _inside(level, 0.4) * (1 + 0.2 * rough), np.multiply(_GREY, factors))
    volume[..., _POST] += max(patient.rim, 0) * np.exp(-(((level - 0.4) / 0.15) ** 2))
    return np.asarray(level, np.float32)


def _paint_face(volume: Floats, patient: Patient, grid: Floats, skull: Floats) -> Floats:
    """Paint fat, muscle and air in front of the lower slices' brain; returns the face's share."""
    x, y, z = np.abs(grid[0]), grid[1], grid[2]
    mix = _texture(patient.face, np.stack([x, y, z]))
    low = np.clip(1 - z / 0.38, 0, 1)
    share = skull * _inside(1.1 * low + 0.5 * low * x + 0.05 * mix - 0.95 - y, 0.06)
    _paint(volume, share, _MUSCLE)
    _paint(volume, share * _inside(mix - 0.7, 0.6), _FAT)
    _paint(volume, share * _inside(-0.6 - mix, 0.4), 0.02)
    return share


def _render(patient: Patient, noise: Floats) -> tuple[Bytes, Bytes]:
    """Render images and masks, uint8; the noise is standard normal, (2, slices, size, size, 3)."""
    grid, ramp = _head_grid(patient, *noise.shape[1:3]), 2 / noise.shape[2]
    depth = _skin_depth(patient, grid)
    skull = _inside(depth - patient.scalp, ramp)
    cortex = depth - (patient.scalp + patient.skull)
    brain, volume = np.zeros(noise.shape, np.float32)
    _paint_brain(brain, patient, grid, cortex)
    level = _paint_tumour(brain, patient, grid)
    _paint(volume, _inside(depth, ramp), _FAT)
    _paint(volume, skull, 0.06)
    _paint(volume, _inside(cortex, ramp), brain)
    face = _paint_face(volume, patient, grid, skull)
    volume *= patient.gain * np.exp(0.12 * _texture(patient.shading, grid))[..., None]
    magnitude = np.hypot(volume + patient.noise * noise[0], patient.noise * noise[1])
    images = np.clip(np.rint(255 * magnitude), 0, 255).astype(np.uint8)
    if not 0.05 <= patient.missing <= 0.95:
        images[..., _PRE if patient.missing < 0.5 else _POST] = images[..., _FLAIR]
    return images, np.uint8(255) * ((level > 0) & (cortex > 0) & (face < 0.5))


def _write_patient(root: Path, number: int, slices: int, size: int, seed: int) -> None:
    rng = np.random.default_rng([seed, number])
    patient = _draw_patient(rng)
    noise = rng.standard_normal((2, slices, size, size, 3), np.float32)
    name = f"PHANTOM_{_SITES[(number - 1) % len(_SITES)]}_{number:04d}_20000101"
    (root / name).mkdir()
    for index, (image, mask) in enumerate(zip(*_render(patient, noise), strict=True), start=1):
        for suffix, pixels in (("", image[..., ::-1]), ("_mask", mask)):  # OpenCV takes BGR
            encoded = cv2.imencode(".tif", pixels)[1]
            (root / name / f"{name}_{index}{suffix}.tif").write_bytes(encoded.tobytes())


def _check_existing(root: Path, parameters: dict[str, int]) -> None:
    try:
        found = read_json(root / MARKER)["parameters"]
    except (DataError, KeyError) as error:
        raise DataError(f"{root} exists and is not a generated dataset; name another") from error
    if found != parameters:
        raise DataError(f"{root} was generated with {found}, not {parameters}; name another")


def generate_phantom(
    root: Path, *, patients: int = 40, slices: int = 6, size: int = 64, seed: int = 44
) -> Path:
    """Write a generated dataset, complete or not at all; one that is there already is kept.

    Args:
        root: Folder to create, with ``PHANTOM_<site>_<number>_<date>/`` for each patient. These
            hold ``<folder>_<n>.tif`` (uint8, RGB = pre-contrast, FLAIR, post-contrast) and
            ``<folder>_<n>_mask.tif`` (uint8, 0 or 255), slices n from 1 at the skull base.
        patients: Number of patients, each with one tumour.
        slices: Slices of each patient.
        size: Rows and columns of a slice, in pixels, at least 32.
        seed: Seed, at least 0; the same arguments give byte-identical files.

    Returns:
        The root.

    Raises:
        DataError: If the root exists with other parameters or none, or an argument is too small.
    """
    parameters = {"patients": patients, "slices": slices, "size": size, "seed": seed}
    parameters["version"] = VERSION
    if root.exists():
        _check_existing(root, parameters)
        return root
    if min(patients, slices) < 1 or size < 32 or seed < 0:
        raise DataError(f"cannot generate a dataset with {parameters}")
    marker = {"synthetic": "all of this folder; no patient data", "parameters": parameters}
    try:
        with write_folder(root) as folder:
            for number in range(1, patients + 1):
                _write_patient(folder, number, slices, size, seed)
            write_text(folder / MARKER, json.dumps(marker, indent=2) + "\n")
    except OSError:
        if not root.exists():
            raise
        _check_existing(root, parameters)  # another process was first
    return root
