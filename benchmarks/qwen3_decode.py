"""How much does the worker add to the decode of a Qwen3 with 20 M parameters, against the same kernels in a direct loop?

Random weights (seeded), batch 1 and 16, on `thread`, behind a context of 128 positions, by the runner of the example.
The rival calls the same forward pass in the thread of the loop, without `pypto_actors`. Needed: at most 3 % more at
batch 1 and 2 % at batch 16; wanted: 1 %.

One step of each side is one round, in an order drawn anew for each, so that the machine's drift meets all sides alike;
each side has weights and a cache of its own, so that none finds them warmed by another; BLAS has one thread. A third
side runs the direct model in a bare thread: what the way to any thread costs, and what the cores make of it. All
models are made anew several times, since where their memory lies moves a side by some per cent: a difference smaller
than that between the placements is none. The answer is the median of all rounds; where others disturb the cores, the
ratio of the lower quartiles of all steps, printed beside it, is the steadier figure.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np
import threadpoolctl

import pypto_actors as pa
from benchmarks import harness
from benchmarks.floors import BareThread
from benchmarks.harness import SEED, Answer
from examples.qwen3.config import Config
from examples.qwen3.direct import DirectModel
from examples.qwen3.programs import make_programs
from examples.qwen3.runner import Qwen3
from examples.qwen3.weights import Part, Weights, random_weights

CONFIG = Config(
    vocab_size=6144,
    hidden_size=512,
    intermediate_size=1408,
    layers=6,
    heads=8,
    kv_heads=2,
    head_dim=64,
    max_positions=1024,
    tied=True,
)
CONTEXT = 128
POSITIONS = 1024
PLACEMENTS = 5  # times that all models are made anew


def parts_of(weights: Weights) -> Iterator[Part]:
    """As the runner takes them."""
    for field, array in weights._asdict().items():
        yield Part(field, None, array)


class Steps:
    """Tokens and positions of one side's steps: one further position each time, and again from the context's end."""

    def __init__(self, batch: int) -> None:
        self._draw = np.random.default_rng(SEED)
        self._batch = batch
        self._position = CONTEXT

    def __next__(self) -> tuple[list[int], list[int]]:
        self._position = self._position + 1 if self._position + 1 < CONTEXT + 128 else CONTEXT
        return self._draw.integers(CONFIG.vocab_size, size=self._batch).tolist(), [self._position] * self._batch


def decode_directly(model: DirectModel, tokens: Sequence[int], positions: Sequence[int]) -> None:
    """What the runner does, without a worker."""
    model.decode_step(np.fromiter(tokens, np.int64), np.fromiter(positions, np.int64))


async def step_by_step(batch: int, rounds: int) -> harness.Rounds:
    """Single steps of all sides in turn, on models that are made anew."""
    direct, threaded = (DirectModel(CONFIG, random_weights(CONFIG, POSITIONS, SEED), batch) for _ in range(2))
    programs = make_programs(CONFIG, POSITIONS, batch)
    steps = {name: Steps(batch) for name in ("direct", "worker", "bare thread")}
    async with (
        pa.DistributedWorker(programs.both, backend="thread", trace=harness.hook(f"batch {batch}")) as worker,
        Qwen3(worker, programs, parts_of(random_weights(CONFIG, POSITIONS, SEED))) as model,
        BareThread() as bare,
    ):

        async def by_direct() -> float:
            tokens, positions = next(steps["direct"])
            start = time.perf_counter()
            decode_directly(direct, tokens, positions)
            return time.perf_counter() - start

        async def by_worker() -> float:
            tokens, positions = next(steps["worker"])
            start = time.perf_counter()
            await model.decode(tokens, positions)
            return time.perf_counter() - start

        async def by_bare_thread() -> float:
            tokens, positions = next(steps["bare thread"])
            start = time.perf_counter()
            await bare.submit(lambda: decode_directly(threaded, tokens, positions))
            return time.perf_counter() - start

        sides = {"direct": by_direct, "worker": by_worker, "bare thread": by_bare_thread}
        return await harness.paired(rounds, sides, warm_up=10)


def measure_batch(batch: int, rounds: int, placements: int, must: float) -> Answer:
    """The rounds of all placements together."""
    times: dict[str, list[float]] = {}
    medians: list[float] = []
    for _ in range(placements):
        some = asyncio.run(step_by_step(batch, rounds))
        medians.append(100 * (statistics.median(harness.ratios(some, "worker", "direct")) - 1))
        for name, values in some.items():
            times.setdefault(name, []).extend(values)
    added = [100 * (ratio - 1) for ratio in harness.ratios(times, "worker", "direct")]
    floor = [100 * (ratio - 1) for ratio in harness.ratios(times, "bare thread", "direct")]
    quiet = {name: float(np.percentile(values, 25)) for name, values in times.items()}
    notes = {
        **harness.microseconds(times),
        "% added by a bare thread": statistics.median(floor),
        "% added, lower quartiles": 100 * (quiet["worker"] / quiet["direct"] - 1),
        "% added, placement with the least": min(medians),
        "% added, placement with the most": max(medians),
        "% added by a bare thread, lower quartiles": 100 * (quiet["bare thread"] / quiet["direct"] - 1),
    }
    how = f"{len(added)} single steps of each in turn; placements {min(medians):+.1f} to {max(medians):+.1f} %"
    how += f", lower quartiles {notes['% added, lower quartiles']:+.1f} %"
    how += f"; a bare thread {notes['% added by a bare thread']:+.1f} %"
    question = f"Qwen3 20M decode, batch {batch}, thread: added"
    return Answer(question, "the same kernels in a direct loop", "%", must, 1, added, how, notes)


def measure(quick: bool) -> list[Answer]:
    """The answers to this question."""
    answers = []
    with threadpoolctl.threadpool_limits(1):
        for batch, rounds, must in ((1, 150, 3), (16, 60, 2)):
            answers.append(measure_batch(batch, 5 if quick else rounds, 1 if quick else PLACEMENTS, must))
    return answers


if __name__ == "__main__":
    harness.main(__doc__, measure)
