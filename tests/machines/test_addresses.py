"""Addresses of host arrays, read from their heads, against what numpy tells."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pypto_actors.addresses import address_of, read_address, told_address

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)


@given(hnp.arrays(st.sampled_from(["i1", "<f4", ">f8", "c16", "S3", "M8[s]"]), SHAPES), st.data())
def test_of_any_array_and_view(array: np.ndarray[Any, Any], data: st.DataObject) -> None:
    view: Any = array[data.draw(hnp.basic_indices(array.shape, allow_newaxis=True))] if array.ndim else array
    for one in (array, np.asarray(view), array.view(np.recarray) if array.dtype.names else array.T):
        assert address_of(one) == read_address(one) == told_address(one)
