"""Floats in JSON are short, and exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmq_offload.gateway.decimals import short_floats


@pytest.mark.parametrize("width", [16, 32, 64])
@given(data=st.data())
def test_short_floats_are_the_same_floats(width: int, data: st.DataObject) -> None:
    bits = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=20))
    array = np.array(bits, f"u{width // 8}").view(f"f{width // 8}")
    with np.errstate(all="ignore"):  # a signaling NaN is not converted in silence
        np.testing.assert_array_equal(short_floats(array).astype(array.dtype), array)


def test_values_that_people_write_are_written_as_they_were() -> None:
    written = [0.1, -0.2, 1 / 3, 1e10, 16777216.0, 3.4028235e38, 2.5, 0.0, 1.17549e-38]
    assert short_floats(np.array(written, np.float32)).tolist() == [*written[:2], 0.33333334, *written[3:]]
    assert short_floats(np.array([0.1, 2.5, 6e-08], np.float16)).tolist() == [0.1, 2.5, 5.96e-08]
    assert np.signbit(short_floats(np.array([-0.0], np.float32)))[0]
