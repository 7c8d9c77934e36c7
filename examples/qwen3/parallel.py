"""`--devices N`: one model over N devices (`--parallel tensor`), or N models on a device each (`--parallel data`), on one worker."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np

import pypto_actors as pa
from examples.qwen3.config import Config
from examples.qwen3.errors import OptionError, remedy
from examples.qwen3.forward import Ids
from examples.qwen3.options import Options
from examples.qwen3.parallel_programs import ShardedPrograms, make_sharded_programs
from examples.qwen3.parallel_shards import shards_of
from examples.qwen3.programs import Programs, make_programs
from examples.qwen3.runner import AHEAD, Qwen3
from examples.qwen3.sampling import Sampler
from examples.qwen3.weights import Array, Part
from pypto_actors import tracing
from pypto_actors.backends import ProcessBackend, RayBackend

REMEDY = "use fewer --devices or another --backend"


class Model(Protocol):
    """What text is generated with: a model that keeps one sequence."""

    @property
    def config(self) -> Config: ...

    def generate(self, ids: Iterable[int], count: int, sampler: Sampler, keep: bool = False) -> AsyncGenerator[tuple[int, Array | None]]:
        """Up to `count` tokens behind a prompt; an EOS is the last. Each with the logits (V,) that it was chosen from, where they are to
        `keep`. Raises `CheckpointError` where logits are not finite."""


Parts = Callable[[int], Iterable[Part]]  # all parts of the model, with a rotary table for so many tokens


@contextlib.asynccontextmanager
async def open_models(
    options: Options, config: Config, positions: int, parts: Parts, trace: tracing.Recorder | None = None
) -> AsyncIterator[Sequence[Model]]:
    """A worker, and on it the models that `--devices` and `--parallel` ask for. Raises `OptionError` where that cannot be."""
    devices = options.devices
    if devices > 1 and options.parallel == "tensor":
        sharded = make_sharded_programs(config, positions, devices)
        worker = open_worker(sharded.both, options.backend, devices, trace, options.blas_threads)
        async with worker as entered, TensorParallel(entered, sharded, parts(positions)) as model:
            yield [model]
    else:
        programs = make_programs(config, positions)
        worker = open_worker(programs.both, options.backend, devices, trace, options.blas_threads)
        ahead = 1 if options.backend == "inline" else AHEAD
        async with worker as entered, replicas(entered, programs, parts(positions), devices, ahead) as models:
            yield models


@contextlib.asynccontextmanager
async def open_worker(
    programs: Sequence[pa.Program], backend: str, devices: int, trace: tracing.Recorder | None = None, blas_threads: int = 1
) -> AsyncIterator[pa.DistributedWorker]:
    """A worker of so many devices, with `blas_threads` each where they are processes of their own. Raises `OptionError` where this
    installation lacks the backend, or it does not start here.

    What the body raises goes on as it is.
    """
    try:
        processes = {"process": ProcessBackend, "ray": RayBackend}.get(backend)
        chosen = processes(blas_threads=blas_threads) if processes else backend
        worker = pa.DistributedWorker(programs, backend=chosen, config=pa.DistributedConfig(range(devices)), trace=trace)
    except (ImportError, ValueError) as error:
        raise OptionError(f"--backend {backend}: {' '.join(str(error).split())}; use --backend thread") from None
    async with contextlib.AsyncExitStack() as stack:
        try:
            entered = await stack.enter_async_context(worker)
        except (RuntimeError, OSError) as error:
            what_to_do = remedy(error, REMEDY) if isinstance(error, OSError) else REMEDY
            raise OptionError(f"--devices {devices} --backend {backend}: {' '.join(str(error).split())}; {what_to_do}") from None
        yield entered


@contextlib.asynccontextmanager
async def replicas(
    worker: pa.DistributedWorker, programs: Programs, parts: Iterable[Part], devices: int, ahead: int = AHEAD
) -> AsyncIterator[Sequence[Qwen3]]:
    """The whole model on each device: `devices` sequences at once, by the same two programs. The weights come from the host once; the
    other devices have them from the first."""
    async with contextlib.AsyncExitStack() as stack:
        models = [await stack.enter_async_context(Qwen3(worker, programs, parts, 0, ahead))]
        for device in range(1, devices):
            models.append(await stack.enter_async_context(Qwen3(worker, programs, models[0], device, ahead)))
        yield models


class TensorParallel:
    """One model, its weights and its KV cache cut into a shard for each device. As `Qwen3`, for one sequence."""

    def __init__(self, worker: pa.DistributedWorker, programs: ShardedPrograms, parts: Iterable[Part]) -> None:
        self.programs = programs
        self._worker = worker
        self._parts = parts
        self._tensors: dict[str, pa.StackedDeviceTensor] = {}

    @property
    def config(self) -> Config:
        return self.programs.config

    async def __aenter__(self) -> Self:
        devices = self.programs.devices
        try:
            for name, shape in self.programs.tensor_shapes.items():
                # zeros take no host memory before they are written
                self._tensors[name] = await self._worker.alloc_stacked_tensor(np.zeros(shape, np.float32))
            for part in self._parts:
                tensors = self._tensors[part.field].shards
                for tensor, array in zip(tensors, shards_of(part, self.config, devices), strict=True):
                    await self._worker.copy_to(tensor if part.layer is None else tensor[part.layer], np.ascontiguousarray(array))
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

    async def generate(
        self, ids: Iterable[int], count: int, sampler: Sampler, keep: bool = False
    ) -> AsyncGenerator[tuple[int, Array | None]]:
        """The logits are put together on the host, and the token is chosen there, before the next step can begin."""
        prompt = list(ids)
        logits = await self.prefill(prompt)
        for position in range(len(prompt), len(prompt) + count):
            token = sampler.choose(logits)
            yield token, logits if keep else None
            if token in self.config.eos_token_ids or position + 1 == len(prompt) + count:
                return
            logits = (await self.decode([token], [position]))[0]

    async def prefill(self, tokens: Iterable[int]) -> Array:
        """Logits (V,) behind a prompt."""
        ids = np.fromiter(tokens, np.int64)
        return await self._run(self._prefill, ids, np.arange(len(ids), dtype=np.int64))

    async def decode(self, tokens: Iterable[int], positions: Iterable[int]) -> Array:
        """Logits (1, V) behind one further token, at its position."""
        return (await self._run(self._decode, np.fromiter(tokens, np.int64), np.fromiter(positions, np.int64)))[None]

    async def _run(self, bound: pa.BoundProgram, ids: Ids, places: Ids) -> Array:
        """Every device brings its columns of the logits; the last ones may have too many."""
        result = await bound(ids, places)
        (logits,) = result.outputs
        whole: Array = logits.reshape(-1)[: self.config.vocab_size]
        return whole
