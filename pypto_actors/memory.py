"""Memory calls of a worker: allocate, free, copy. Each is a message to the coordinator; the bytes move between host and device actors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeAlias

import anyio
import numpy as np
import numpy.typing as npt

from pypto_actors.accesses import host_accesses
from pypto_actors.errors import ArgumentTypeError, ArgumentValueError, InternalError, ProgramError, StaleTensorError
from pypto_actors.lifecycle import Record, RunState
from pypto_actors.mailbox import Counter
from pypto_actors.messages import Allocate, Cancel, Copy, Free, Piece, Read, Transfer, Write
from pypto_actors.recording import shape_of
from pypto_actors.submission import rank_of
from pypto_actors.system import System
from pypto_actors.tensors import Tensors, tensors_of
from pypto_actors.values import Access, DeviceTensor, StackedDeviceTensor

Array = np.ndarray[Any, Any]
AnyTensor: TypeAlias = DeviceTensor | StackedDeviceTensor


class Memory:
    """The memory calls, on one system of actors."""

    def __init__(self, system: System, counter: Counter, tensors: Tensors, world_size: int) -> None:
        self._system = system
        self._counter = counter
        self._tensors = tensors
        self._world_size = world_size

    async def allocate(self, shape: Any, dtype: npt.DTypeLike, init: Any, device: int) -> DeviceTensor:
        form, kind, rank = _shape(shape), _dtype(dtype), rank_of(device, self._world_size)
        if init is not None:
            _check_host(init, form, kind, "init")
        tensor = DeviceTensor.of(rank, form, kind, self._tensors.number())
        await self._allocate((tensor,), (init,) if init is not None else ())
        return tensor

    async def allocate_stacked(self, host: Any, devices: Sequence[int] | None) -> StackedDeviceTensor:
        if not isinstance(host, np.ndarray):
            raise ArgumentTypeError(f"alloc_stacked_tensor takes a numpy array, got {type(host).__name__}; make it one: numpy.stack(…)")
        if host.ndim == 0 or host.shape[0] == 0:
            raise ArgumentValueError(f"a stacked tensor has one shard a leading index, got the shape {host.shape}")
        kind = _dtype(host.dtype)
        try:
            chosen = range(host.shape[0]) if devices is None else list(devices)
        except TypeError:
            raise ArgumentTypeError(f"devices takes a sequence of ranks, one a shard, got {devices!r}") from None
        ranks = [rank_of(device, self._world_size) for device in chosen]
        if len(ranks) != host.shape[0]:
            raise ArgumentValueError(f"a leading dimension of {host.shape[0]} needs as many devices, got {list(ranks)}")
        shards = tuple(DeviceTensor.of(rank, host.shape[1:], kind, self._tensors.number()) for rank in ranks)
        await self._allocate(shards, [host[index, ...] for index in range(len(shards))])
        return StackedDeviceTensor(shards, host.shape, kind)

    async def _allocate(self, tensors: tuple[DeviceTensor, ...], inits: Sequence[Array]) -> None:
        run = self._counter.next()
        pieces = tuple(Write(run, part, tensor, init) for part, (tensor, init) in enumerate(zip(tensors, inits, strict=bool(inits))))
        record = Record(run)
        record.message = message = Allocate(run, tensors, pieces, tuple(access for init in inits for access in host_accesses(init, False)))
        # at once: their device may die between their end and our waking
        self._tensors.alive.update({tensor.allocation: tensor for tensor in tensors})
        self._system.tell(message, record)
        try:
            await self.settle(record)
        except BaseException as error:
            for tensor in tensors:
                self._tensors.alive.pop(tensor.allocation, None)
            if isinstance(error, asyncio.CancelledError) and record.state is RunState.DONE:  # nobody will ever know the tensors
                with anyio.CancelScope(shield=True):
                    await self.settle(self._free(tensors))
            raise

    def begin_free(self, tensor: AnyTensor) -> Record | None:
        """The tensor is stale from here on; the record ends when the memory is free. `None`: it was freed before."""
        tensors = tensors_of(tensor, "what is freed")
        for one in tensors:
            if one.view:
                raise ArgumentValueError(f"{one!r} is a view; free the tensor that it was made from")
            if one.allocation >> 32 != self._tensors.next >> 32:
                raise StaleTensorError(f"{one!r} belongs to another worker; free it there")
        alive = tuple(one for one in tensors if one.allocation in self._tensors.alive)
        if not alive:
            return None
        for one in alive:
            del self._tensors.alive[one.allocation]
        self._tensors.epoch += 1
        return self._free(alive)

    def _free(self, tensors: tuple[DeviceTensor, ...]) -> Record:
        run = self._counter.next()
        record = Record(run, message=Free(run, tensors))
        self._system.tell(record.message, record)
        return record

    async def write(self, dst: AnyTensor, src: Any) -> None:
        targets = self._alive(dst, "dst")
        _check_host(src, dst.shape, dst.dtype, "src")
        sources = [src] if isinstance(dst, DeviceTensor) else [src[index, ...] for index in range(len(targets))]
        run = self._counter.next()
        pieces = tuple(Write(run, part, target, source) for part, (target, source) in enumerate(zip(targets, sources, strict=True)))
        await self._copy(run, pieces, [target.writes for target in targets] + host_accesses(src, False))

    async def read(self, dst: Any, src: AnyTensor) -> None:
        sources = self._alive(src, "src")
        _check_host(dst, src.shape, src.dtype, "dst")
        if not dst.flags.writeable:
            raise ArgumentValueError("dst is a read-only array; pass a writable one")
        targets = [dst] if isinstance(src, DeviceTensor) else [dst[index, ...] for index in range(len(sources))]
        run = self._counter.next()
        pieces = tuple(Read(run, part, target, source) for part, (target, source) in enumerate(zip(targets, sources, strict=True)))
        await self._copy(run, pieces, [source.reads for source in sources] + host_accesses(dst, True))

    async def transfer(self, dst: AnyTensor, src: AnyTensor) -> None:
        targets, sources = self._alive(dst, "dst"), self._alive(src, "src")
        if dst.shape != src.shape or dst.dtype != src.dtype or len(targets) != len(sources):
            raise ArgumentValueError(f"transfer needs equal shapes, dtypes and kinds, got {dst!r} and {src!r}")
        run = self._counter.next()
        pieces = tuple(Transfer(run, part, target, source) for part, (target, source) in enumerate(zip(targets, sources, strict=True)))
        await self._copy(run, pieces, [target.writes for target in targets] + [source.reads for source in sources])

    def _alive(self, tensor: Any, what: str) -> tuple[DeviceTensor, ...]:
        tensors = tensors_of(tensor, what)
        for one in tensors:
            self._tensors.check(one, what)
        return tensors

    async def _copy(self, run: int, pieces: tuple[Piece, ...], accesses: list[Access]) -> None:
        record = Record(run)
        record.message = message = Copy(run, pieces, tuple(accesses))
        self._system.tell(message, record)
        await self.settle(record)

    async def settle(self, record: Record) -> None:
        """Wait for the end of `record`, which this task owns: cancelled, it takes the record back, or waits until it has ended."""
        await own(self._system, record)
        _check_outcome(record)

    async def follow(self, record: Record) -> None:
        """Wait for the end of `record`, which goes on by itself: cancelled, the caller leaves at once."""
        if not record.ended:
            waiter = self._system.loop.create_future()
            record.enlist(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                record.asked = True
                raise
            finally:
                record.delist(waiter)
        _check_outcome(record)


def _check_outcome(record: Record) -> None:
    if record.failure is not None:
        raise record.failure.make()
    if record.state is not RunState.DONE:
        raise InternalError(f"{record!r} ended without an outcome")


async def own(system: System, record: Record) -> None:
    """Wait for the end of a record that this task owns.

    Cancelled while it is queued: it is taken back, and has no effect. Cancelled later: the cancellation is raised when it has ended, so
    that nothing writes the caller's arrays afterwards, as `anyio.to_thread.run_sync` does.
    """
    if record.ended:
        return
    waiter = system.loop.create_future()
    if record.waiters is None:
        record.waiters = waiter
    else:
        record.enlist(waiter)
    try:
        await waiter
    except asyncio.CancelledError:
        await abandon(system, record)
        raise


async def abandon(system: System, record: Record) -> None:
    """The owner of a record was cancelled: take it back, or wait for its end, whatever cancels this task meanwhile; the caller raises."""
    record.asked = True
    if record.state is RunState.QUEUED:
        system.tell(Cancel(record.id))
        system.flush()
    if record.ended:
        return
    with anyio.CancelScope(shield=True):
        while not record.ended:
            waiter = system.loop.create_future()
            record.enlist(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                continue  # the first cancellation is raised in the end
            finally:
                record.delist(waiter)


def _shape(shape: Any) -> tuple[int, ...]:
    try:
        return shape_of(shape)
    except (ProgramError, TypeError) as error:
        kind = ArgumentValueError if isinstance(error, ProgramError) else ArgumentTypeError
        raise kind(f"a shape is an int or a tuple of ints of at least 0, got {shape!r}") from None


def _dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise ArgumentTypeError(f"{dtype!r} is no numpy dtype: {error}") from None
    if kind.subdtype is not None:
        raise ArgumentValueError(f"the dtype {kind} is an array itself; give {kind.base}, and its dimensions {kind.shape} with the shape")
    if kind.hasobject:
        raise ArgumentValueError(f"a device tensor cannot hold Python objects, got the dtype {kind}")
    if kind.itemsize == 0:
        raise ArgumentValueError(f"the dtype {kind} has no size; give one, such as {kind.str}8")
    return kind


def _check_host(array: Any, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
    if not isinstance(array, np.ndarray):
        raise ArgumentTypeError(f"{what} must be a numpy array, got {type(array).__name__}; make it one: numpy.asarray(…)")
    if array.shape != shape:
        raise ArgumentValueError(f"{what} must have the tensor's shape {shape}, got {array.shape}")
    if array.dtype != dtype:
        raise ArgumentValueError(f"{what} must have the tensor's dtype {dtype}, got {array.dtype}; convert it: .astype({str(dtype)!r})")
