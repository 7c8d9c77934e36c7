"""Steps of decode that are submitted before the one before them has ended: the tokens are those of single steps, and nothing is left over.

Breaks that this catches, each planted once in a copy: the next token is chosen by the wrong draw, a position stands still, steps wait for
each other on the host, an EOS leaves a step that nobody awaits, and a failure behind an EOS is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

import pypto_actors as pa
from examples.qwen3 import programs as qwen3_programs
from examples.qwen3.checkpoint import Checkpoint
from examples.qwen3.config import Config, read_config
from examples.qwen3.decode import DecodeStep, make_decode_step
from examples.qwen3.errors import CheckpointError
from examples.qwen3.generate import main
from examples.qwen3.programs import MOST_AT_ONCE, make_programs, steps_at_once
from examples.qwen3.runner import AHEAD, Qwen3
from examples.qwen3.sampling import NOT_FINITE, Sampler, Sampling, pick, pick_each
from examples.qwen3.weights import Part
from pypto_actors import testing
from tests.qwen3.support import GOLDENS, PLAIN, expected

PROMPT, TOKENS, _ = expected(PLAIN)
CONFIG = read_config(GOLDENS / PLAIN)


@contextlib.asynccontextmanager
async def opened(
    backend: str = "inline",
    batch: int = 1,
    steps: int | None = 1,
    change: Callable[[Part], Part] = lambda part: part,
    eos: tuple[int, ...] = (),
    ahead: int = 2,
) -> AsyncIterator[tuple[pa.DistributedWorker, Qwen3]]:
    config = dataclasses.replace(CONFIG, eos_token_ids=eos)
    programs = make_programs(config, len(PROMPT) + len(TOKENS), batch, steps)
    parts = map(change, Checkpoint(GOLDENS / PLAIN, CONFIG).parts(programs.positions))
    async with pa.DistributedWorker(programs.both, backend=backend) as worker:
        async with Qwen3(worker, programs, parts, 0, ahead) as model:
            yield worker, model
        assert worker.statistics().devices[0].memory_used == 0


async def one_by_one(model: Qwen3, count: int, sampler: Sampler) -> list[tuple[int, np.ndarray]]:
    logits = await model.prefill(PROMPT)
    said = []
    for position in range(len(PROMPT), len(PROMPT) + count):
        said.append((sampler.choose(logits), logits))
        logits = (await model.decode([said[-1][0]], [position]))[0]
    return said


async def collect(model: Qwen3, said: list[int], sampler: Sampler | None = None) -> None:
    async for token, _ in model.generate(PROMPT, 9, sampler or Sampler()):
        said.append(token)


@pytest.mark.parametrize(
    ("backend", "steps"), [("inline", 1), ("inline", 2), ("inline", 5), ("thread", None), ("process", 1), ("process", 3)]
)
@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.3, "seed": 3}, {"temperature": 0.9, "top_k": 7, "top_p": 0.8, "seed": 4}])
async def test_they_are_those_of_single_steps(backend: str, steps: int | None, drawn: dict[str, Any]) -> None:
    async with opened(backend, steps=steps) as (_, model):
        wanted = await one_by_one(model, len(TOKENS), Sampler(**drawn))
        for keep in (False, True):
            got = [said async for said in model.generate(PROMPT, len(TOKENS), Sampler(**drawn), keep)]
            assert [token for token, _ in got] == [token for token, _ in wanted]
            for (_, logits), (_, other) in zip(got, wanted, strict=True):
                if keep:
                    assert logits is not None
                    np.testing.assert_array_equal(logits, other)
                else:
                    assert logits is None
        assert drawn or [token for token, _ in got] == TOKENS


@pytest.mark.parametrize("steps", [1, 2, None])
async def test_a_batch_goes_on_from_its_prefills(steps: int | None) -> None:
    lengths = [2, 5, len(PROMPT)]
    async with opened("thread", batch=3, steps=steps) as (_, model):
        first = [int((await model.prefill(PROMPT[:n], slot)).argmax()) for slot, n in enumerate(lengths)]
        rows = [first, *[chosen.tolist() async for chosen in model.decode_ahead(5, Sampler())]]
        rows += [chosen.tolist() async for chosen in model.decode_ahead(2, Sampler(), 1)]
    for slot, n in enumerate(lengths):
        async with opened() as (_, model):
            assert [token async for token, _ in model.generate(PROMPT[:n], 8, Sampler())] == [row[slot] for row in rows]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [1, 2, 4])
async def test_no_step_is_submitted_that_is_not_needed(count: int, steps: int) -> None:
    async with opened(steps=steps) as (worker, model):
        assert len([said async for said in model.generate(PROMPT, count, Sampler())]) == count
        assert worker.statistics().accepted == 1 + -(-(count - 1) // steps)
        assert (await worker.read(model.tensors["positions"])).tolist() == [len(PROMPT) + count - 1]


async def test_where_a_kernel_keeps_the_loop_each_step_comes_as_it_ends() -> None:
    async with opened("inline", ahead=1) as (worker, model):
        stream = model.generate(PROMPT, 4, Sampler())
        for count, wanted in enumerate(TOKENS[:4], 1):
            assert (await anext(stream))[0] == wanted
            assert worker.statistics().accepted == count


async def test_the_next_step_is_with_the_device_before_this_one_has_ended() -> None:
    """While a token is looked at, the device has begun the next step and has the one behind that already."""
    async with opened("thread") as (worker, model):
        stream = model.generate(PROMPT, 6, Sampler())
        await anext(stream)
        statistics = worker.statistics()
        assert statistics.accepted == 2
        await anext(stream)
        assert worker.statistics().accepted == 3
        assert [token async for token, _ in stream] == TOKENS[2:6]


@pytest.mark.parametrize(("backend", "steps"), [("inline", 1), ("thread", 1), ("thread", 3), ("thread", None)])
async def test_an_eos_is_the_last_and_leaves_nothing(backend: str, steps: int | None, caplog: pytest.LogCaptureFixture) -> None:
    place = next(i for i, token in enumerate(TOKENS) if i > 2 and token not in TOKENS[:i])
    async with opened(backend, steps=steps, eos=(TOKENS[place],)) as (worker, model):
        assert [token async for token, _ in model.generate(PROMPT, len(TOKENS), Sampler())] == TOKENS[: place + 1]
        statistics = worker.statistics()
        assert statistics.accepted <= place + AHEAD
        assert (statistics.queued, statistics.running) == (0, 0)
        assert [token async for token, _ in model.generate(PROMPT, len(TOKENS), Sampler())] == TOKENS[: place + 1]
    assert not caplog.records


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("backend", ["inline", "thread"])
async def test_who_leaves_early_leaves_nothing(backend: str, keep: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(backend) as (worker, model):
        for count in range(1, 5):
            async with contextlib.aclosing(model.generate(PROMPT, 12, Sampler(), keep)) as stream:
                for wanted in TOKENS[:count]:
                    assert (await anext(stream))[0] == wanted
            assert (worker.statistics().queued, worker.statistics().running) == (0, 0)
    assert not caplog.records


async def test_who_leaves_takes_back_what_has_not_begun() -> None:
    """The worker is paused before the second step is with the device: nobody waits for its end."""
    programs = make_programs(CONFIG, 64, steps=1)
    parts = Checkpoint(GOLDENS / PLAIN, CONFIG).parts(64)
    async with (
        pa.DistributedWorker(programs.both, backend="inline", in_flight=1) as worker,
        Qwen3(worker, programs, parts) as model,
    ):
        stream = model.generate(PROMPT, 6, Sampler())
        await anext(stream)
        pausing = asyncio.create_task(worker.pause("keep"))
        await asyncio.wait_for(anext(stream), 20)
        await pausing
        await asyncio.wait_for(stream.aclose(), 20)
        assert worker.statistics().cancelled == 1
        await worker.resume()


@pytest.mark.parametrize("seed", range(60))
def test_cancelled_at_any_await_it_leaves_nothing(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    async def session() -> None:
        async with opened() as (worker, model):

            async def say() -> list[int]:
                return [token async for token, _ in model.generate(PROMPT, 6, Sampler())]

            task = asyncio.create_task(say())
            for _ in range(seed % 30):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                assert await task == TOKENS[:6]
            assert (worker.statistics().queued, worker.statistics().running) == (0, 0)
            assert await say() == TOKENS[:6]

    with asyncio.Runner(loop_factory=lambda: testing.SeededLoop(seed)) as runner:
        runner.run(session())
    assert not caplog.records


async def test_a_step_that_fails_is_raised_once_and_those_behind_it_are_not_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps = 0

    def make_failing(*args: Any) -> DecodeStep:
        plain = make_decode_step(*args)

        def failing(*args: Any) -> None:
            nonlocal steps
            steps += 1
            if steps >= 3:
                raise ZeroDivisionError("broken")
            plain(*args)

        return failing

    monkeypatch.setattr(qwen3_programs, "make_decode_step", make_failing)
    with caplog.at_level(logging.DEBUG, "pypto_actors"):
        async with opened("thread") as (_, model):
            said: list[int] = []
            with pytest.raises(pa.KernelError, match="broken"):
                await collect(model, said)
            assert said == TOKENS[:3]
    assert not caplog.records


async def test_a_batch_with_damaged_weights_is_told() -> None:
    def damage(part: Part) -> Part:
        if part.field == "head":
            part.array[0, :] = np.nan
        return part

    async with opened(batch=2, change=damage) as (_, model):
        with pytest.raises(CheckpointError, match="damaged"):
            await anext(model.decode_ahead(3, Sampler()))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.0}])
async def test_damaged_weights_are_told(value: float, drawn: dict[str, Any]) -> None:
    def damage(part: Part) -> Part:
        if part.field == "head":
            part.array[0, :] = value
        return part

    async with opened(change=damage) as (_, model):
        said: list[int] = []
        with pytest.raises(CheckpointError, match="damaged"):
            await collect(model, said, Sampler(**drawn))
        assert not said


def test_what_is_picked_for_each_is_what_is_picked_for_one() -> None:
    chance = np.random.default_rng(0)
    for case in range(60):
        rows = int(chance.integers(1, 6))
        logits = np.round(chance.standard_normal((rows, 11)) * 3).astype(np.float32)
        if case % 5 == 0:
            logits[chance.integers(rows), 3] = np.nan if case % 10 else np.inf
        sampling = Sampling(float(chance.choice([0, 0.5, 2])), int(chance.integers(0, 12)), float(chance.uniform(0.1, 1)))
        draws, out = chance.random(rows), np.empty(rows, np.int64)
        pick_each(logits, sampling, draws, out)
        assert out.tolist() == [pick(row, sampling, draw) for row, draw in zip(logits, draws, strict=True)]
        assert (NOT_FINITE in out) == (case % 5 == 0)


def test_the_steps_of_one_dispatch_take_about_as_long_for_each_model() -> None:
    small, large = CONFIG, Config(151936, 1024, 3072, 28, 16, 8, 128, 4096)
    assert steps_at_once(small, 1) == MOST_AT_ONCE
    assert steps_at_once(large, 1) == 1
    between = Config(6144, 512, 1408, 6, 8, 2, 64, 1024, tied=True)
    assert [steps_at_once(between, batch) for batch in (1, 4, 16)] == [9, 6, 3]


def test_decode_seconds_are_those_between_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prompt-ids", "1,2", "--max-tokens", "1", "--stats"]) == 0
    assert '"decode_tokens": 0, "decode_seconds": 0.0' in capsys.readouterr().err
