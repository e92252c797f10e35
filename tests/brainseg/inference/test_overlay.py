from __future__ import annotations

import cv2
import numpy as np

from brainseg.inference.overlay import (
    BOTH,
    PREDICTED,
    TRUE,
    draw_differences,
    draw_flair,
    draw_outlines,
    draw_probabilities,
    encode_picture,
)

IMAGE = np.full((128, 128, 3), 40, np.uint8)
LEFT, RIGHT = np.zeros((2, 128, 128), bool)
LEFT[32:64, 16:64] = RIGHT[32:64, 48:96] = True


def test_small_slices_are_enlarged_and_large_ones_are_not() -> None:
    assert draw_flair(IMAGE).shape == (512, 512, 3)
    assert draw_flair(np.zeros((600, 400, 3), np.uint8)).shape == (600, 400, 3)


def test_an_outline_follows_the_border_of_its_mask() -> None:
    picture = draw_outlines(IMAGE, (LEFT, TRUE), (RIGHT, PREDICTED))
    assert tuple(picture[128 + 60, 192]) == PREDICTED
    assert tuple(picture[128 + 60, 64]) == TRUE
    assert len(set(picture[160, 300].tolist())) == 1  # inside there is grey FLAIR


def test_differences_have_a_colour_each() -> None:
    picture = draw_differences(IMAGE, LEFT, RIGHT).astype(int)
    grey = draw_flair(IMAGE)[200, 200].astype(int)
    for column, colour in ((120, PREDICTED), (220, BOTH), (320, TRUE)):
        assert np.abs(picture[200, column] - (0.35 * grey + 0.65 * np.array(colour))).max() <= 1
    assert np.array_equal(picture[10, 10], draw_flair(IMAGE)[10, 10])


def test_a_higher_probability_is_brighter() -> None:
    picture = draw_probabilities(np.linspace(0, 1, 512, dtype=np.float32)[None].repeat(4, axis=0))
    brightness = picture[0, ::64].sum(axis=1)
    assert (np.diff(brightness.astype(int)) > 0).all()


def test_an_encoded_picture_decodes_to_the_same_pixels() -> None:
    picture = draw_outlines(IMAGE, (LEFT, TRUE))
    for suffix in (".png", ".tif"):
        decoded = cv2.imdecode(np.frombuffer(encode_picture(picture, suffix), np.uint8), -1)
        assert np.array_equal(np.asarray(decoded)[..., ::-1], picture)
