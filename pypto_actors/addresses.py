"""Where a host array's bytes begin. numpy tells by building a dictionary, which costs more than anything else of a dispatch."""

from __future__ import annotations

import ctypes
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
_data = object.__basicsize__  # an array begins as each object does, and then has the pointer to its data (numpy's stable ABI)
_at = ctypes.c_size_t.from_address


def told_address(array: Array) -> int:
    """As numpy tells it."""
    address: int = array.__array_interface__["data"][0]
    return address


def read_address(array: Array) -> int:
    """As it stands in the array's head, which is ten times as fast."""
    return _at(id(array) + _data).value


def _agree() -> bool:
    """Is the head laid out as expected, in this interpreter and with this numpy?"""
    base = np.arange(60, dtype=np.int16).reshape(5, 12)
    samples = (base, base[3], base[1:, ::-2], base[:0], base.astype(">f8"), np.array(1.5), base.view(np.recarray))
    sizes = np.ndarray.__basicsize__ >= _data + ctypes.sizeof(ctypes.c_size_t) and _data in (16, 24, 32)
    return sizes and all(read_address(sample) == told_address(sample) for sample in samples)


address_of = read_address if _agree() else told_address
