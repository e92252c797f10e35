"""Scores of two masks that pixel counts cannot give: distances of outlines, and lesions.

Nothing undefined is dropped. A tumour that was missed or invented as a whole has no Hausdorff
distance; its slice gets the worst one possible beside it, the slice's diagonal. Surface pixels are
counted, so that their share is defined for each patient.

A boundary pixel of a mask has a pixel outside the mask, or of the image's border, beside, above or
below it. Distances are in pixels of the slice and, where its spacing is known, in millimetres too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

TOLERANCE = 2.0
"""Distance in pixels within which two outlines agree, for the normalised surface distance."""
TOLERANCE_MM = 2.0
"""The same in millimetres, where the spacing of the pixels is known."""
_CORNERS = np.ones((3, 3, 3), dtype=bool)  # voxels that touch at a corner are connected


@dataclass(frozen=True)
class OutlineScores:
    """How far the outlines of a predicted and a true mask are apart, in one slice.

    Attributes:
        hd95: 95th percentile Hausdorff distance in pixels: of the distances from the boundary
            pixels of one mask to the nearest boundary pixel of the other the 95th percentile, and
            of both directions the larger (MONAI's definition; Taha and Hanbury 2015). NaN if a
            mask is empty.
        hd95_worst: The same, and the slice's diagonal if one mask is empty (Metrics Reloaded,
            Maier-Hein et al. 2024). NaN if both are.
        surface: Boundary pixels of both masks.
        surface_within: Those at most `TOLERANCE` from the other mask's boundary. Their share is
            the normalised surface distance (Nikolov et al. 2018).
        in_mm: The same with distances in millimetres and `TOLERANCE_MM`; None if the spacing of
            the pixels is not known.
    """

    hd95: float
    hd95_worst: float
    surface: int
    surface_within: int
    in_mm: OutlineScores | None = None


@dataclass(frozen=True)
class LesionCounts:
    """Components of true and predicted masks in three dimensions.

    Attributes:
        found: True ones that share a voxel with the prediction (true positives).
        missed: True ones that share none (false negatives).
        invented: Predicted ones that share no voxel with the truth (false positives).
    """

    found: int
    missed: int
    invented: int

    def __add__(self, other: LesionCounts) -> LesionCounts:
        """Return the lesions of two volumes."""
        return LesionCounts(
            self.found + other.found, self.missed + other.missed, self.invented + other.invented
        )


def compare_outlines(
    predicted: Mask, true: Mask, spacing: tuple[float, float] | None = None
) -> OutlineScores:
    """Return the distances of two masks' outlines.

    Args:
        predicted: bool (H, W).
        true: bool (H, W).
        spacing: Millimetres from row to row and from column to column, if they are known.
    """
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (predicted, true)]
    scores = _measure(edges, None, TOLERANCE)
    return replace(scores, in_mm=_measure(edges, spacing, TOLERANCE_MM)) if spacing else scores


def _measure(
    edges: Sequence[Mask], spacing: tuple[float, float] | None, tolerance: float
) -> OutlineScores:
    """Return the distances between the boundary pixels of the predicted and the true mask."""
    surface = sum(int(np.count_nonzero(edge)) for edge in edges)
    if not all(edge.any() for edge in edges):
        sides = np.multiply(edges[0].shape, spacing or 1)
        worst = float(np.hypot(*sides)) if surface else np.nan
        return OutlineScores(np.nan, worst, surface, 0)
    to_predicted, to_true = (
        ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges
    )
    distances = (to_true[edges[0]], to_predicted[edges[1]])
    hd95 = max(float(np.percentile(values, 95)) for values in distances)
    within = sum(int(np.count_nonzero(values <= tolerance)) for values in distances)
    return OutlineScores(hd95, hd95, surface, within)


def count_lesions(predicted: Sequence[Mask], true: Sequence[Mask]) -> LesionCounts:
    """Count the lesions of one volume.

    Args:
        predicted: bool (H, W) of each of the volume's slices, in their order. Slices of
            different sizes are laid on each other at their upper left corners.
        true: bool (H, W) of each of them.
    """
    masks = [_stack(slices) for slices in (predicted, true)]
    overlap = masks[0] & masks[1]
    labels, numbers = zip(*(ndimage.label(mask, _CORNERS) for mask in masks), strict=True)
    met = [len(np.unique(of_mask[overlap])) for of_mask in labels]
    return LesionCounts(met[1], numbers[1] - met[1], numbers[0] - met[0])


def keep_components(masks: Sequence[Mask], volumes: Sequence[str], largest_in: str) -> list[Mask]:
    """Return masks with the largest component alone of each slice or each volume.

    Args:
        masks: bool (H, W) of each slice; those of a volume in their order.
        volumes: The volume of each slice.
        largest_in: `none` keeps everything, else `slice` or `volume`, as in an experiment's
            `largest_component`.
    """
    kept = list(masks)
    if largest_in == "none":
        return kept
    members: dict[object, list[int]] = {}
    for position, volume in enumerate(volumes):
        members.setdefault(position if largest_in == "slice" else volume, []).append(position)
    for positions in members.values():
        largest = _keep_largest([masks[n] for n in positions])
        for position, mask in zip(positions, largest, strict=True):
            kept[position] = mask
    return kept


def _keep_largest(masks: Sequence[Mask]) -> list[Mask]:
    """Return the masks of a volume's slices with its largest component alone.

    Of components of equal size the first is kept; voxels that touch at a corner are connected.
    """
    labels, count = ndimage.label(_stack(masks), _CORNERS)
    if count <= 1:
        return list(masks)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    kept = labels == largest
    return [
        of_slice[: mask.shape[0], : mask.shape[1]]
        for of_slice, mask in zip(kept, masks, strict=True)
    ]


def _stack(masks: Sequence[Mask]) -> Mask:
    """Return masks of a volume's slices as an array, bool (slices, H, W)."""
    height, width = (max(mask.shape[axis] for mask in masks) for axis in (0, 1))
    volume = np.zeros((len(masks), height, width), dtype=bool)
    for of_slice, mask in zip(volume, masks, strict=True):
        of_slice[: mask.shape[0], : mask.shape[1]] = mask
    return volume
