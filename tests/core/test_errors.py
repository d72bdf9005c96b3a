import math
import numbers

import numpy as np
import pytest

from surgery.core.errors import is_whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((3, True), (1, True), (8, True), (0, False), (9, False), (True, False), (3.0, False), ("3", False)),
        *((None, False), (np.int64(3), False), (math.nan, False)),
    ],
)
def test_whole_numbers(value, expected):
    assert is_whole(value, 1, 8) is expected


def test_whole_numbers_of_numpy_where_they_may_be():
    assert is_whole(np.int64(3), 1, kind=numbers.Integral)
    assert not is_whole(np.bool_(True), kind=numbers.Integral)
