"""A Qwen3 on a worker: weights and KV cache on the device, prefill and decode by bound programs."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import numpy as np

import pypto_actors as pa
from examples.qwen3.config import Config
from examples.qwen3.programs import Programs
from examples.qwen3.weights import Array, Part


class Qwen3:
    """One model on one device of an entered worker that knows both programs. `async with` loads it; leaving frees its tensors.

        programs = make_programs(config, positions)
        async with pa.DistributedWorker(programs.both) as worker:
            async with Qwen3(worker, programs, checkpoint.parts(positions)) as model:
                logits = await model.prefill(ids)

    `parts` are taken one by one, so that a layer at a time is in host memory. Entering raises what `parts` raises,
    and `DeviceOutOfMemoryError` where the model does not fit.
    """

    def __init__(self, worker: pa.DistributedWorker, programs: Programs, parts: Iterable[Part], device: int = 0) -> None:
        self.programs = programs
        self._device = device
        self._worker = worker
        self._parts = parts
        self._tensors: dict[str, pa.DeviceTensor] = {}

    @property
    def config(self) -> Config:
        return self.programs.config

    async def __aenter__(self) -> Self:
        try:
            for name, shape in self.programs.tensor_shapes.items():
                self._tensors[name] = await self._worker.alloc_tensor(shape, np.float32, device=self._device)
            for part in self._parts:
                tensor = self._tensors[part.field]
                await self._worker.copy_to(tensor if part.layer is None else tensor[part.layer], part.array)
            self._prefill = self._worker.bind(self.programs.prefill, **self._tensors)
            self._decode = self._worker.bind(self.programs.decode, **self._tensors)
        except BaseException:
            await self._free()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._free()

    async def _free(self) -> None:
        while self._tensors:
            await self._worker.free_tensor(self._tensors.popitem()[1])

    async def prefill(self, tokens: Iterable[int], slot: int = 0) -> Array:
        """Logits (V,) behind a prompt, which becomes sequence `slot` from position 0. Replaces what was there."""
        ids = np.fromiter(tokens, np.int64)
        logits = np.empty(self.programs.config.vocab_size, np.float32)
        await self._prefill(ids, slot, logits)
        return logits

    def bind_decode(self, **state: pa.DeviceTensor) -> pa.BoundProgram:
        """The decode program with weights, cache and `state` fixed: device tensors `tokens` (n,), `positions` (n,), `logits` (n, V).

        Such steps need nothing of the host, so they can be submitted ahead: the way to the device is hidden behind the step before.
        """
        return self._worker.bind(self.programs.decode, **self._tensors, **state)

    async def decode(self, tokens: Iterable[int], positions: Iterable[int]) -> Array:
        """Logits (n, V) behind one further token of each of the first n sequences, at its own position."""
        ids, places = np.fromiter(tokens, np.int64), np.fromiter(positions, np.int64)
        logits = np.empty((len(ids), self.programs.config.vocab_size), np.float32)
        await self._decode(ids, places, logits)
        return logits
