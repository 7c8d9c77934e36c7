"""What crosses to a process, cut anywhere. Breaks that this catches, each planted once in a copy: the first bytes of the next frame thrown
away, and the end of what a full pipe has not taken."""

from __future__ import annotations

import random
from typing import Annotated

import numpy as np
import pytest
from msgspec.structs import astuple

import pypto_actors as pa
from pypto_actors.backends.wire import Frames, Run, frame, from_process, to_process
from pypto_actors.messages import Completed


@pytest.mark.parametrize("seed", range(200))
def test_frames_are_found_however_they_are_cut(seed: int) -> None:
    chance = random.Random(seed)
    sent = [Completed(run, 0, 0, 0.5, 1.5, "x" * chance.choice((0, 3, 1000))) for run in range(chance.randrange(1, 20))]
    data = b"".join(frame(message) for message in sent)
    frames, came = Frames(), []
    while data:
        size = chance.choice((1, 2, 3, 4, 5, 50, 2000, len(data)))
        came += [from_process.decode(body) for body in frames.feed(data[:size])]
        data = data[size:]
    assert [(message.run, message.value) for message in came] == [(message.run, message.value) for message in sent]


def test_messages_to_a_process_go_together() -> None:
    bodies = Frames().feed(frame([Run(1, 7), Run(2, 8)]) + frame([Run(3, 9)]))
    assert [[astuple(message) for message in to_process.decode(body)] for body in bodies] == [[(1, 7), (2, 8)], [(3, 9)]]


async def test_a_message_that_is_larger_than_a_pipe() -> None:
    table = np.arange(1 << 20)

    @pa.kernel
    def look(x: pa.OutArray) -> None:
        x[...] = table[-4:]

    @pa.program
    def looked(orch: pa.Orchestrator, x: Annotated[pa.TensorRef, pa.Out((4,), np.int64)]) -> None:
        orch.submit(look, x)

    async with pa.DistributedWorker(looked, backend="process") as worker:
        handles = [worker.submit_nowait(looked) for _ in range(5)]
        for handle in handles:
            assert (await handle).outputs[0].tolist() == table[-4:].tolist()
