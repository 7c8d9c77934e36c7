"""How much does the worker add to the decode of a Qwen3 with 20 M parameters, against the same kernels in a direct loop?

Random weights (seeded), greedy, batch 1 and 16, on `thread`, behind a context of 128 positions, by the runner of the example: each step's
tokens are chosen on the device and come to the host; short steps go several in one dispatch, and the next are submitted before these have
ended. The rival calls the same kernels in the thread of the loop, without `pypto_actors`. Needed: at most 3 % more at batch 1 and 2 % at
batch 16; wanted: 1 %.

Both sides work on the same memory, that of the device, so that neither has the better place or finds the caches colder; in blocks of
steps, in an order drawn anew for each round; all is made anew several times. BLAS has one thread. Three more sides say what it is made
of: a dispatch for each step (`singly`), the same where each token goes back to the device from the host (`step by step`), and a bare thread
that is handed one step after another.
The answer is the median of all rounds; the ratio of the lower quartiles, printed beside it, is steadier where others disturb the cores.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any

import numpy as np
import threadpoolctl

import pypto_actors as pa
from benchmarks import harness
from benchmarks.floors import BareThread
from benchmarks.harness import SEED, Answer
from examples.qwen3.config import Config
from examples.qwen3.decode import make_decode_step
from examples.qwen3.programs import make_programs
from examples.qwen3.runner import Qwen3
from examples.qwen3.sampling import Sampler, Sampling, pick_each
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
PLACEMENTS = 5  # times that all is made anew
BLOCK = {1: 63, 16: 18}  # steps, by batch: whole dispatches


def parts_of(weights: Weights) -> Iterator[Part]:
    """As the runner takes them."""
    for field, array in weights._asdict().items():
        yield Part(field, None, array)


taken: list[np.ndarray[Any, Any]] = []  # by `lay_open`


@pa.kernel
def take(tensor: pa.InOutArray) -> None:
    taken.append(tensor)


@pa.program
def lay_open(orch: pa.Orchestrator, tensor: Annotated[pa.TensorRef, pa.InOut()]) -> None:
    orch.submit(take, tensor)


class Direct:
    """The steps of decode in a plain loop, on the memory of the device, which lies in this process and is idle meanwhile."""

    def __init__(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        weights = Weights(**{name: arrays[name] for name in Weights._fields})
        self.decode_step = make_decode_step(CONFIG, weights, arrays["keys"], arrays["values"], len(arrays["tokens"]))
        self.arrays = arrays
        self.sampling = Sampling()

    @classmethod
    async def of(cls, worker: pa.DistributedWorker, model: Qwen3) -> Direct:
        """That of a model on a device that is a thread."""
        taken.clear()
        tensors = model.tensors
        for tensor in tensors.values():
            await worker.run(lay_open, tensor)
        return cls(dict(zip(tensors, taken, strict=True)))

    def step(self) -> list[int]:
        """What the kernel does in a step, and the tokens for the host."""
        tokens, positions, logits = self.arrays["tokens"], self.arrays["positions"], self.arrays["logits"][0]
        self.decode_step(tokens, positions, logits)
        pick_each(logits, self.sampling, self.arrays["draws"][0], tokens)
        positions += 1
        chosen: list[int] = tokens.tolist()
        return chosen

    def begin(self) -> None:
        """Stand behind the context again."""
        self.arrays["positions"][:] = CONTEXT


async def in_blocks(batch: int, rounds: int) -> harness.Rounds:
    """Blocks of all sides in turn; seconds of a step."""
    programs = make_programs(CONFIG, POSITIONS, batch)
    block = BLOCK[batch]
    async with (
        pa.DistributedWorker([*programs.both, lay_open], backend="thread", trace=harness.hook(f"batch {batch}")) as worker,
        Qwen3(worker, programs, parts_of(random_weights(CONFIG, POSITIONS, SEED))) as model,
        BareThread() as bare,
    ):
        direct = await Direct.of(worker, model)

        async def by_direct() -> None:
            for _ in range(block):
                direct.step()

        async def by_worker() -> None:
            async for tokens in model.decode_ahead(block, Sampler()):
                tokens.tolist()

        async def singly() -> None:
            async for tokens in model.decode_ahead(block, Sampler(), 1):
                tokens.tolist()

        async def step_by_step() -> None:
            tokens = [0] * batch
            for position in range(CONTEXT, CONTEXT + block):
                tokens = (await model.decode(tokens, [position] * batch)).argmax(axis=1).tolist()

        async def by_bare_thread() -> None:
            for _ in range(block):
                await bare.submit(direct.step)

        def timed(side: Callable[[], Awaitable[None]]) -> harness.Side:
            async def measured() -> float:
                direct.begin()
                start = time.perf_counter()
                await side()
                return (time.perf_counter() - start) / block

            return measured

        sides = {"direct": by_direct, "worker": by_worker, "singly": singly, "step by step": step_by_step, "bare thread": by_bare_thread}
        if programs.steps == 1:
            del sides["singly"]  # the same as `worker`
        return await harness.paired(rounds, {name: timed(side) for name, side in sides.items()}, warm_up=2)


def measure_batch(batch: int, rounds: int, placements: int, must: float) -> Answer:
    """The rounds of all placements together."""
    times: dict[str, list[float]] = {}
    medians: list[float] = []
    for _ in range(placements):
        some = asyncio.run(in_blocks(batch, rounds))
        medians.append(100 * (statistics.median(harness.ratios(some, "worker", "direct")) - 1))
        for name, values in some.items():
            times.setdefault(name, []).extend(values)
    added = {name: [100 * (ratio - 1) for ratio in harness.ratios(times, name, "direct")] for name in times}
    quiet = {name: float(np.percentile(values, 25)) for name, values in times.items()}
    notes = {
        **harness.microseconds(times),
        "% added by a bare thread": statistics.median(added["bare thread"]),
        "% added step by step": statistics.median(added["step by step"]),
        "% added, lower quartiles": 100 * (quiet["worker"] / quiet["direct"] - 1),
        "% added, placement with the least": min(medians),
        "% added, placement with the most": max(medians),
    }
    how = f"{len(added['worker'])} blocks of {BLOCK[batch]} steps of each in turn; placements {min(medians):+.1f} to {max(medians):+.1f} %"
    how += f", lower quartiles {notes['% added, lower quartiles']:+.1f} %"
    if "singly" in added:
        notes["% added singly"] = statistics.median(added["singly"])
        how += f"; singly {notes['% added singly']:+.1f} %"
    how += f"; step by step {notes['% added step by step']:+.1f} %, a bare thread {notes['% added by a bare thread']:+.1f} %"
    question = f"Qwen3 20M decode, batch {batch}, thread: added"
    return Answer(question, "the same kernels in a direct loop", "%", must, 1, added["worker"], how, notes)


def measure(quick: bool) -> list[Answer]:
    """The answers to this question."""
    answers = []
    with threadpoolctl.threadpool_limits(1):
        for batch, rounds, must in ((1, 12, 3), (16, 8, 2)):
            answers.append(measure_batch(batch, 2 if quick else rounds, 1 if quick else PLACEMENTS, must))
    return answers


if __name__ == "__main__":
    harness.main(__doc__, measure)
