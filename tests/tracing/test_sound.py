"""Whatever happens, the trace is sound: random mixes of gangs, copies, callbacks, failures, cancellations and deaths, in random orders."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pypto_actors import testing, tracing
from pypto_actors.events import Event
from tests.devices.mixes import Mix
from tests.devices.slow import SlowBackend
from tests.tracing.support import shown


def played(seed: int, deaths: int) -> list[Event]:
    mix = Mix(seed, SlowBackend(seed, restart_time=0.001) if seed % 3 else "inline", deaths)
    with asyncio.Runner(loop_factory=functools.partial(testing.SeededLoop, seed, virtual_time=True)) as runner:
        runner.run(mix.play())
    return mix.events


def check(timeline: tracing.Timeline) -> None:
    seen = shown(timeline)
    for (name, key), values in seen.counters.items():
        assert values[-1][1] == 0, (name, key)
    for device in range(timeline.devices):  # a device does one thing at a time
        spans = sorted((span for span in timeline.spans if span.device == device and span.kind != "copy"), key=lambda span: span.start)
        for one, other in itertools.pairwise(spans):
            assert one.finish <= other.start
    assert all(span.start <= span.finish for span in timeline.spans)
    assert all(span.outcome != "unfinished" for span in timeline.spans)
    assert all(wait.outcome != "unfinished" for wait in timeline.waits)
    answered = [passage for passage in timeline.passages if passage.step == "answer"]
    assert len({passage.span for passage in answered}) == len(answered)


@pytest.mark.parametrize("deaths", [0, 1, 3])
def test_a_random_mix_gives_a_sound_trace(deaths: int, seeds: range, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "pypto_actors")
    for seed in seeds[:60]:
        try:
            check(tracing.timeline(played(seed, deaths)))
        except BaseException as error:
            error.add_note(f"seed {seed}, {deaths} deaths")
            raise


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), limit=st.integers(1, 60))
def test_a_bounded_recording_is_sound_and_ends_as_the_whole_does(seed: int, share: float, limit: int) -> None:
    """Also when it is cut off somewhere: what it kept no event of, it still counts."""
    logging.getLogger("pypto_actors").setLevel(logging.CRITICAL)
    events = played(seed, seed % 3)
    events = events[: max(1, int(share * len(events)))]
    bounded, read = tracing.Recorder(limit=limit), tracing.Recorder(limit=limit)
    for event in events:
        bounded(event)
        read(event)
        read.timeline()  # at any time, and it changes nothing
    assert read.timeline() == bounded.timeline()
    assert bounded.events == events[-limit:]
    part, whole = bounded.timeline(), tracing.timeline(events)
    shown(part)
    assert (part.load[-1].queued, part.load[-1].running) == (whole.load[-1].queued, whole.load[-1].running)
    held, known = ({memory.device: memory.nbytes for memory in each.memory} for each in (part, whole))
    assert held == {device: nbytes for device, nbytes in known.items() if device in held}
    assert not any(nbytes for device, nbytes in known.items() if device not in held)
    assert set(part.spans) <= set(whole.spans)
    assert set(part.waits) <= set(whole.waits)
    names = [passage.name for passage in part.passages]
    assert names == [passage.name for passage in whole.passages][len(whole.passages) - len(names) :]
    assert all(passage.span < len(part.spans) for passage in part.passages)
