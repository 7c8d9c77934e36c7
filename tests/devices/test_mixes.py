"""Guarantee 9: gangs follow one global order, so no mix can deadlock; and the control: with the order left free per device, mixes hang.

Breaks that this catches: hand-over of a gang to some of its devices only; parts of a wave that are sent at different times; devices that
reorder what they are handed (the control); claims that are not in one order.
"""

from __future__ import annotations

import asyncio
import functools
import logging

import pytest

import pypto_actors.testing as testing
from pypto_actors.executor import Backend
from tests.devices.mixes import Mix
from tests.devices.slow import LooseExecutor, SlowBackend

CONTROLS = 40


def play(seed: int, backend: str | Backend) -> Mix:
    async def main() -> Mix:
        mix = Mix(seed, backend)
        await mix.play()
        mix.check_gangs()
        return mix

    with asyncio.Runner(loop_factory=functools.partial(testing.SeededLoop, seed, virtual_time=True)) as runner:
        return runner.run(main())


@pytest.mark.timeout(900)
def test_no_mix_of_gangs_and_singles_hangs(seeds: range, caplog: pytest.LogCaptureFixture) -> None:
    """`--seeds 10000` for the whole proof; a seed that fails is run again by `--first-seed SEED --seeds 1`."""
    caplog.set_level(logging.CRITICAL, "pypto_actors")
    for seed in seeds:
        try:
            mix = play(seed, "inline" if seed % 4 == 0 else SlowBackend(seed))
            if seed % 10 == 0:
                mix.replay()
        except BaseException as error:
            error.add_note(f"run it again: python -m pytest tests/devices/test_mixes.py --seeds 1 --first-seed {seed}")
            raise


def hangs(seed: int) -> bool:
    """Does the mix of `seed` hang where each device orders for itself? If so, its meetings are given up, so that it ends after all."""
    backend = SlowBackend(seed, LooseExecutor)
    hung = False
    with asyncio.Runner(loop_factory=functools.partial(testing.SeededLoop, seed, virtual_time=True)) as runner:
        loop = runner.get_loop()
        main = loop.create_task(Mix(seed, backend).play())
        while not main.done():
            try:
                loop.run_until_complete(main)
            except testing.DeadlockError:
                hung = True
                backend.desert_all()
    return hung


def test_the_same_mixes_hang_where_the_order_is_free_per_device(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    hung = [seed for seed in range(CONTROLS) if hangs(seed)]
    assert len(hung) >= CONTROLS // 3, f"only {hung} of {CONTROLS} hang: the proof above proves nothing"
