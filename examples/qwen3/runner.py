"""A Qwen3 on a worker: weights and KV cache on the device, prefill and decode by bound programs."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

import pypto_actors as pa
from examples.qwen3.config import Config
from examples.qwen3.programs import Programs
from examples.qwen3.sampling import Ids, Sampler, Sampling, checked
from examples.qwen3.weights import Array, Part, Weights

AHEAD = 2  # dispatches that are submitted and not over: the one that runs, and the next, which begins as soon as that has ended


class UnderWay(NamedTuple):
    """A dispatch under way. When it is over, it has chosen tokens (steps, n) from logits (steps, n, V); None, if those are not kept."""

    handle: pa.DistributedRunHandle
    chosen: Ids
    logits: Array | None


class Qwen3:
    """One model on one device of an entered worker that knows both programs. `async with` loads it; leaving frees its tensors.

        programs = make_programs(config, positions)
        async with pa.DistributedWorker(programs.both) as worker:
            async with Qwen3(worker, programs, checkpoint.parts(positions)) as model:
                async for token, _ in model.generate(ids, 20, Sampler()):
                    print(token)

    `parts` are taken one by one, so that a layer at a time is in host memory; or they are another model that has been entered, whose
    weights go from its device to this one. `ahead`: dispatches that are submitted and not over; 1 where a kernel keeps the loop, which
    can do nothing beside it. Entering raises what `parts` raises, and `DeviceOutOfMemoryError` where the model does not fit.
    """

    def __init__(
        self, worker: pa.DistributedWorker, programs: Programs, parts: Iterable[Part] | Qwen3, device: int = 0, ahead: int = AHEAD
    ) -> None:
        self.programs = programs
        self._device = device
        self._worker = worker
        self._parts = parts
        self._most_under_way = ahead
        self._tensors: dict[str, pa.DeviceTensor] = {}  # weights and caches
        self._state: dict[str, pa.DeviceTensor] = {}  # what one step leaves to the next, and what needs not leave the device
        self._ready: dict[tuple[int, Sampling, bool], pa.BoundProgram] = {}

    @property
    def config(self) -> Config:
        return self.programs.config

    @property
    def tensors(self) -> Mapping[str, pa.DeviceTensor]:
        """Weights, caches and what one step leaves to the next, by the name of the parameter that takes them."""
        return {**self._tensors, **self._state}

    async def __aenter__(self) -> Self:
        try:
            for name, shape in self.programs.tensor_shapes.items():
                self._tensors[name] = await self._worker.alloc_tensor(shape, np.float32, device=self._device)
            for name, shape, dtype in self.programs.state:
                self._state[name] = await self._worker.alloc_tensor(shape, dtype, device=self._device)
            await self._load(self._parts)
            self._prefill = self._worker.bind(self.programs.prefill, **self._tensors, **self._given("tokens", "positions"))
            self._decode = self._worker.bind(self.programs.decode, **self._tensors)
        except BaseException:
            await self._free()
            raise
        return self

    def _given(self, *names: str) -> dict[str, pa.DeviceTensor]:
        return {name: self._state[name] for name in names}

    async def _load(self, parts: Iterable[Part] | Qwen3) -> None:
        if isinstance(parts, Qwen3):
            for name in Weights._fields:
                await self._worker.transfer(self._tensors[name], parts._tensors[name])
            return
        for part in parts:
            tensor = self._tensors[part.field]
            await self._worker.copy_to(tensor if part.layer is None else tensor[part.layer], part.array)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._free()

    async def _free(self) -> None:
        for tensors in (self._tensors, self._state):
            while tensors:
                await self._worker.free_tensor(tensors.popitem()[1])

    # ------------------------------------------------------------------------------------------ each step by itself

    async def prefill(self, ids: Iterable[int], slot: int = 0) -> Array:
        """Logits (V,) behind a prompt, which becomes sequence `slot` from position 0. Replaces what was there."""
        begun = await self._submit_prefill(np.fromiter(ids, np.int64), slot, Sampler(), True)
        await begun.handle
        assert begun.logits is not None
        logits: Array = begun.logits[0, 0]
        return logits

    async def decode(self, tokens: Iterable[int], positions: Iterable[int]) -> Array:
        """Logits (n, V) behind one further token of each of the first n sequences, at its own position."""
        ids, places = np.fromiter(tokens, np.int64), np.fromiter(positions, np.int64)
        rows = 1, len(ids)
        logits = np.empty((*rows, self.config.vocab_size), np.float32)
        await self._decode(ids, places, np.zeros(rows), *Sampling(), logits, np.empty(rows, np.int64))
        of_the_step: Array = logits[0]
        return of_the_step

    # ------------------------------------------------------------------------------------------ steps that are submitted ahead

    async def generate(
        self, ids: Iterable[int], count: int, sampler: Sampler, keep: bool = False
    ) -> AsyncGenerator[tuple[int, Array | None]]:
        """Up to `count` tokens behind a prompt, which becomes the first sequence; an EOS is the last.

        With each token come the logits (V,) that it was chosen from, where they are to `keep`. Raises `CheckpointError` where logits are
        not finite. While a token is looked at, the device is at the next ones.
        """
        begun = [await self._submit_prefill(np.fromiter(ids, np.int64), 0, sampler, keep)]
        async with contextlib.aclosing(self._ahead(begun, count - 1, sampler, keep, self.programs.steps)) as over:
            async for _, chosen, logits in over:
                for step, row in enumerate(chosen):
                    token = checked(int(row[0]))
                    yield token, None if logits is None else logits[step, 0]
                    if token in self.config.eos_token_ids:
                        return

    async def decode_ahead(self, count: int, sampler: Sampler, at_once: int | None = None) -> AsyncGenerator[Ids]:
        """`count` further tokens (batch,) of all sequences, which go on from where `prefill` and `decode_ahead` have left them.

        `at_once`: steps in one dispatch, up to `programs.steps`, the default. Raises `CheckpointError` where logits are not finite.
        """
        async with contextlib.aclosing(self._ahead([], count, sampler, False, at_once or self.programs.steps)) as over:
            async for _, chosen, _ in over:
                for row in chosen:
                    checked(int(row.min()))
                    yield row

    async def _ahead(self, begun: Iterable[UnderWay], further: int, sampler: Sampler, keep: bool, at_once: int) -> AsyncGenerator[UnderWay]:
        """Dispatches as they end, those that have `begun` and others for so many `further` steps of decode."""
        under_way = deque(begun)
        try:
            while under_way or further:
                while further and len(under_way) < self._most_under_way:
                    steps = min(further, at_once)
                    under_way.append(await self._submit_decode(steps, sampler, keep))
                    further -= steps
                await under_way[0].handle
                yield under_way.popleft()
        finally:
            for one in under_way:
                one.handle.cancel()
            for one in under_way:  # one that runs already: its end is near, and nobody else will ask how it was
                with contextlib.suppress(pa.PyptoActorsError):
                    await one.handle

    async def _submit_decode(self, steps: int, sampler: Sampler, keep: bool) -> UnderWay:
        rows = steps, self.programs.batch
        logits = np.empty((*rows, self.config.vocab_size), np.float32) if keep else None
        chosen = np.empty(rows, np.int64)
        draws = () if sampler.greedy else (sampler.draws(rows),)
        rest = (*draws, chosen) if logits is None else (*draws, logits, chosen)
        return UnderWay(await self._bound(steps, sampler, keep).submit(*rest), chosen, logits)

    def _bound(self, steps: int, sampler: Sampler, keep: bool) -> pa.BoundProgram:
        """Decode of all sequences from where they were left. With each call come draws, unless it is greedy; logits to keep; `chosen`."""
        key = steps, sampler.sampling, keep
        if key not in self._ready:
            scratch = {name: self._state[name][0:steps] for name, needed in (("draws", sampler.greedy), ("logits", not keep)) if needed}
            fixed = {**self._tensors, **self._given("tokens", "positions"), **scratch}
            self._ready[key] = self._worker.bind(self.programs.decode, **fixed, **sampler.sampling._asdict())
        return self._ready[key]

    async def _submit_prefill(self, ids: Ids, slot: int, sampler: Sampler, keep: bool) -> UnderWay:
        logits = np.empty((1, 1, self.config.vocab_size), np.float32) if keep else None
        draw = 0.0 if sampler.greedy else float(sampler.draws((1,))[0])
        chosen = np.empty((1, 1), np.int64)
        into = self._state["logits"][0][slot] if logits is None else logits[0, 0]
        return UnderWay(await self._prefill.submit(ids, slot, draw, *sampler.sampling, into, chosen[0]), chosen, logits)
