"""Devices that die at random moments under mixes of gangs and singles: everything ends, nothing is held, the decisions replay.

Breaks that this catches: a part that reaches a dead device and is dropped without a word to its gang; scratch that is given back twice,
or to a device that is down; a restart that forgets who waits for it; a lost device that goes on being waited for.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random

import pytest

import pypto_actors.testing as testing
from tests.devices.mixes import Mix
from tests.devices.slow import SlowBackend


def play(seed: int) -> Mix:
    async def main() -> Mix:
        chance = random.Random(seed)
        backend = "inline" if seed % 3 == 0 else SlowBackend(seed, restart_time=chance.choice((0.0, 0.001, 0.01)))
        mix = Mix(seed, backend, chance.randrange(1, 6))
        await mix.play()
        mix.replay()
        return mix

    with asyncio.Runner(loop_factory=functools.partial(testing.SeededLoop, seed, virtual_time=True)) as runner:
        return runner.run(main())


@pytest.mark.timeout(900)
def test_whatever_dies_everything_ends(seeds: range, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "pypto_actors")
    for seed in seeds[::4]:
        try:
            play(seed)
        except BaseException as error:
            error.add_note(f"run it again: python -m pytest tests/devices/test_deaths.py --seeds 1 --first-seed {seed}")
            raise
