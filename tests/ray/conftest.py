"""One local Ray for all tests here."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray that the tests' workers find and leave as it is. It ends with the thread that has started it: the main one."""
    import ray

    ray.init(address="local", num_cpus=4, resources={"slot": 2}, include_dashboard=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()
