import numpy as np
import pytest

from melanoma.imaging.measures import dark_border


def test_a_round_field_of_view_leaves_its_dark_corners() -> None:
    rows, columns = np.mgrid[-1:1:200j, -1:1:200j]
    pixels = np.full((200, 200, 3), (220, 170, 150), np.uint8)
    pixels[np.hypot(rows, columns) > 1] = 10
    assert dark_border(pixels) == pytest.approx(1 - np.pi / 4, abs=0.01)


def test_a_dark_lesion_in_the_middle_is_no_border() -> None:
    pixels = np.full((100, 100, 3), 200, np.uint8)
    pixels[30:70, 30:70] = 5
    assert dark_border(pixels) == 0.0


def test_a_lesion_that_touches_one_side_is_no_border() -> None:
    pixels = np.full((100, 100, 3), 200, np.uint8)
    pixels[30:70, :40] = 5
    assert dark_border(pixels) == 0.0


def test_a_black_picture_is_all_border() -> None:
    assert dark_border(np.zeros((10, 10, 3), np.uint8)) == 1.0
