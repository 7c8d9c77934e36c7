"""At least 1,000 seeded schedules of clients that submit, copy, cancel, pause, fail and close at any await; the invariants hold after each.

`pytest tests/chaos --seeds 10000` runs ten times as many; a seed that fails is run again by `--first-seed SEED --seeds 1`.
"""

from __future__ import annotations

import asyncio
import functools

import numpy as np
import pytest

from pypto_actors.testing import SeededLoop, replay
from tests.chaos.model import Model
from tests.chaos.scenario import Scenario


def check(scenario: Scenario) -> None:
    """What must hold when a worker has ended, however it was treated."""
    worker = scenario.worker
    statistics = worker.statistics()
    ended = statistics.done + statistics.failed + statistics.cancelled + statistics.expired
    assert statistics.accepted == ended
    assert statistics.queued == statistics.running == 0
    assert all(worker.committed_device_memory(device) == 0 for device in range(scenario.devices))
    system = worker._system
    assert system is not None
    coordinator = system.coordinator
    assert not coordinator.records
    assert len(coordinator.hazards) == coordinator.hazards.shared == 0
    assert not coordinator.operations.watches
    assert not system.mail
    assert not system.admission.waiting
    assert system.admission.room == system.admission.limit
    for queue in coordinator.queues:
        assert (queue.outstanding, queue.work, len(queue.order), len(queue.claims)) == (0, 0, 0, 0)
    model = Model(scenario)
    np.testing.assert_array_equal(scenario.base[~model.host_undefined], model.host[~model.host_undefined])
    for tensor, value in scenario.finals.items():
        known = ~model.device_undefined[tensor.allocation]
        np.testing.assert_array_equal(value[known], model.device[tensor.allocation][known])
    assert replay(scenario.events) > 0


async def play(seed: int) -> None:
    scenario = Scenario(seed)
    await scenario.run()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    check(scenario)


@pytest.mark.timeout(600)
def test_any_schedule_keeps_the_invariants(seeds: range) -> None:
    for seed in seeds:
        try:
            with asyncio.Runner(loop_factory=functools.partial(SeededLoop, seed, virtual_time=True)) as runner:
                runner.run(play(seed))
        except BaseException as error:
            error.add_note(f"run it again: python -m pytest tests/chaos --seeds 1 --first-seed {seed}")
            raise
