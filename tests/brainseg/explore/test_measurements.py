from __future__ import annotations

import numpy as np

from brainseg.data.slice_store import SliceStore
from brainseg.explore.measurements import measure_slices


def test_measurements_equal_those_of_plain_numpy(data: SliceStore) -> None:
    found = measure_slices(data)
    masks = np.stack([data.mask(index) for index in range(len(data.slices))])
    images = np.stack([data.image(index) for index in range(len(data.slices))])
    areas = found.slices["tumour_pixels"]
    assert np.array_equal(areas, masks.sum(axis=(1, 2)))
    assert np.array_equal(found.heat, masks.sum(axis=0))
    assert np.allclose(found.means, images.mean(axis=(1, 2)))
    assert np.allclose(found.spreads, images.std(axis=(1, 2)), atol=1e-6)
    assert np.allclose(found.mean_image, images[..., 1].mean(axis=0))
    largest = int(areas.argmax())
    rows, columns = np.nonzero(masks[largest])
    centre = (columns.mean() + 0.5) / data.size, (rows.mean() + 0.5) / data.size
    assert np.allclose(found.slices.loc[largest, ["x", "y"]].astype(float), centre)
    assert found.slices["x"][areas == 0].isna().all()
    tumour = images[masks > 0]
    expected = [np.bincount(tumour[:, channel], minlength=256) for channel in range(3)]
    assert np.array_equal(found.tumour_histogram, expected)
    assert found.components["area"].sum() == masks.sum()
