"""Comparison of the batches that loaders yield."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Content = Sequence[tuple[torch.Tensor, ...]]


def equal_batches(left: Content, right: Content) -> bool:
    """Return whether two epochs have the same batches: images, masks and indices."""
    return all(
        torch.equal(a, b)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )
