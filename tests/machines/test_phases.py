"""`PhaseFair` on several devices, dispatches on two of them included: the bound holds on each device.

Breaks that this catches: counters that are not kept for each device, claims that go before what the policy bars them for.
"""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from pypto_actors.plan import PlanFamily
from pypto_actors.policy import PhaseFair
from tests.machines.desk import Desk, family

PLANS: dict[tuple[int, ...], PlanFamily] = {devices: family(devices) for devices in ((0,), (1,), (0, 1))}


def most_in_a_row(seed: int, gangs: bool, policy: PhaseFair) -> tuple[int, int]:
    """The most prefills, and the most decodes, handed to one device one after another while one of the other stage was ready for it."""
    chance = random.Random(seed)
    desk = Desk(2, policy, 1)
    known: dict[int, tuple[str, tuple[int, ...]]] = {}
    rows = {(device, stage): 0 for device in (0, 1) for stage in ("prefill", "decode")}
    most = {"prefill": 0, "decode": 0}
    for turn in range(250):
        if chance.random() < 0.7:
            devices: tuple[int, ...] = (0, 1) if gangs and chance.random() < 0.4 else (chance.randrange(2),)
            stage = "prefill" if len(devices) == 2 else chance.choice(("prefill", "decode"))
            known[desk.submit(PLANS[devices], stage=stage, at=float(turn))] = (stage, devices)
        ready = desk.ready()
        for run in desk.route():
            ready.remove(run)
            stage, devices = known[run]
            other = "decode" if stage == "prefill" else "prefill"
            for device in devices:
                waits = any(known[one][0] == other and device in known[one][1] for one in ready)
                rows[device, other] = 0
                rows[device, stage] = rows[device, stage] + 1 if waits else 0
                most[stage] = max(most[stage], rows[device, stage])
        if desk.outstanding:
            desk.answer(chance.randrange(len(desk.outstanding)))
    return most["prefill"], most["decode"]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), prefills=st.integers(1, 3), decodes=st.integers(1, 4))
def test_the_bounds_hold_on_each_device(seed: int, prefills: int, decodes: int) -> None:
    most = most_in_a_row(seed, gangs=False, policy=PhaseFair(prefills, decodes))
    assert most[0] <= prefills
    assert most[1] <= decodes


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_bound_of_prefills_holds_for_those_on_two_devices_too(seed: int) -> None:
    assert most_in_a_row(seed, gangs=True, policy=PhaseFair(2, 16))[0] <= 2
