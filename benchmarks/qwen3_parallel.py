"""How much faster do two devices, as processes, decode than one, with a Qwen3 of 20 M parameters on each (data parallel)?

Random weights (seeded), batch 1 and 16 on each device, behind a context of 128 positions, by the runner of the example on `process`: each
step's tokens come to the host, and the next step is submitted before this one has ended. The second device has its weights from the first.
One round: a block of steps on the first device alone, and a block of as many on both at once, in an order drawn anew. The answer is the
time for each token with both, as a share of that with one: 0.59 means 1.7 times as fast (needed at batch 1), 0.56 means 1.8 times
(needed at batch 16), 0.53 means 1.9 times (wanted). On two cores nothing else may run for this to be reached.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import numpy as np

import pypto_actors as pa
from benchmarks import harness
from benchmarks.harness import SEED, Answer
from benchmarks.qwen3_decode import CONFIG, CONTEXT, POSITIONS, parts_of
from examples.qwen3.parallel import replicas
from examples.qwen3.programs import make_programs
from examples.qwen3.runner import Qwen3
from examples.qwen3.sampling import Sampler
from examples.qwen3.weights import random_weights

DEVICES = 2


async def steps_of(model: Qwen3, count: int) -> None:
    """Decode, one step after another."""
    async for tokens in model.decode_ahead(count, Sampler()):
        tokens.tolist()


async def measure_batch(batch: int, rounds: int, count: int, must: float) -> Answer:
    """Blocks on one device beside blocks on both."""
    programs = make_programs(CONFIG, POSITIONS, batch)
    config = pa.DistributedConfig(range(DEVICES))
    weights = random_weights(CONFIG, POSITIONS, SEED)
    async with (
        pa.DistributedWorker(programs.both, backend="process", config=config, trace=harness.hook(f"batch {batch}")) as worker,
        replicas(worker, programs, parts_of(weights), DEVICES) as models,
    ):
        behind = np.full(batch, CONTEXT)

        async def on(several: int) -> float:
            for model in models[:several]:
                await worker.copy_to(model.tensors["positions"], behind)
            start = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for model in models[:several]:
                    group.create_task(steps_of(model, count))
            return (time.perf_counter() - start) / (count * several * batch)

        times = await harness.paired(rounds, {"one device": lambda: on(1), "both": lambda: on(DEVICES)}, warm_up=2)
    values = harness.ratios(times, "both", "one device")
    notes = {**harness.microseconds(times), "times as fast": 1 / statistics.median(values)}
    how = f"blocks of {count} steps, alternating; {notes['times as fast']:.2f} times as fast"
    question = f"Qwen3 20M decode, two devices as processes, batch {batch} each: time of a token"
    return Answer(question, "one device", "×", must, 1 / 1.9, values, how, notes)


def measure(quick: bool) -> list[Answer]:
    """The answers to this question."""
    some = ((1, 30, 63, 1 / 1.7), (16, 15, 18, 1 / 1.8))
    return [asyncio.run(measure_batch(batch, 3 if quick else rounds, 2 if quick else count, must)) for batch, rounds, count, must in some]


if __name__ == "__main__":
    harness.main(__doc__, measure)
