"""Options of all tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=1000, help="how many seeded schedules each test of schedules runs (default 1000)")
    parser.addoption("--first-seed", type=int, default=0, help="the first seed; with --seeds 1 it runs just that one again")


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    first: int = request.config.getoption("--first-seed")
    count: int = request.config.getoption("--seeds")
    return range(first, first + count)
