"""Programs and tools for tests of Ray: those for processes, and what differs."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

import pypto_actors as pa
from tests.process import support

# Of every module of tests here: skipped as a whole without Ray, and run apart from the others by `-m ray`.
needs_ray = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'pypto_actors[ray]'"),
]
shares_ray = [*needs_ray, pytest.mark.usefixtures("local_ray")]


def opened(*programs: pa.Program, devices: int = 1, backend: Any = "ray", **options: Any) -> pa.DistributedWorker:
    return support.opened(*programs, devices=devices, backend=backend, **options)
