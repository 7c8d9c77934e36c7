"""The worker: a facade before the actors. It checks calls, puts messages into the coordinator's mailbox, and awaits their records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from numbers import Real
from threading import get_ident
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from pypto_actors.backends import Backend, backend_of
from pypto_actors.bound import BoundProgram
from pypto_actors.compiled import AnyProgram, DistributedCompiledProgram
from pypto_actors.config import DistributedConfig
from pypto_actors.coordinator import Settings
from pypto_actors.errors import AmbiguousProgramError, WorkerClosedError
from pypto_actors.events import TraceHook
from pypto_actors.handle import DistributedRunHandle, RunResult, refuse_inside_callback
from pypto_actors.host import INSIDE
from pypto_actors.lifecycle import Record
from pypto_actors.mailbox import Counter
from pypto_actors.memory import AnyTensor, Memory, abandon, own
from pypto_actors.messages import Drain, Pause, Resume, Retire
from pypto_actors.options import Declared, WorkerOptions, declare, plain
from pypto_actors.policy import PhaseFair, Policy
from pypto_actors.registration import RegistrationHandle
from pypto_actors.registry import Entry, Registry
from pypto_actors.statistics import Statistics
from pypto_actors.submission import PLAIN, Options, Prepared, Waiting, accept, options_of, prepare, queue_full, rank_of
from pypto_actors.supervision import Supervisor
from pypto_actors.system import System
from pypto_actors.tensors import Tensors, tensors_of
from pypto_actors.values import DeviceTensor, StackedDeviceTensor

Programs: TypeAlias = AnyProgram | Iterable[AnyProgram]


class DistributedWorker:
    """Runs programs on shared devices; an `async with`.

    Args:
        programs: one program or an iterable of them, plain or compiled.
        config: the devices; `None`: that of the compiled programs, or one device.
        callbacks: the functions for the names that programs declare as callbacks.
        backend: `"inline"` (kernels run on the event loop), `"thread"` (a thread for each device), `"process"` (a process for each
            device, tensors in shared memory; Linux, extra `process`), `"ray"` (a Ray actor for each device; extra `ray`), or a backend
            object, such as `backends.RayBackend(address=…)`.
        policy: which dispatch goes next; `None`: `PhaseFair()`.
        max_queued: most dispatches accepted and not yet handed over.
        in_flight: dispatches handed to a device ahead of the one that runs.
        max_restarts: how often within 60 s a device that died is started again, empty; beyond that it is lost.
        persistent: windows live as long as the worker, one for each program and name.
        reset_persistent_windows: `False`: persistent windows are not zeroed before each dispatch.
        startup_timeout: seconds until a start that hangs is given up with a `TimeoutError`.
        trace: gets every message and state change, as `events.Event`.

    Raises:
        TypeError, ValueError, ProgramMismatchError: the arguments do not fit; each says what came and what was expected.
    """

    def __init__(
        self,
        programs: Programs,
        *,
        config: DistributedConfig | None = None,
        callbacks: Mapping[str, Callable[..., Any]] | None = None,
        backend: str | Backend = "thread",
        policy: Policy | None = None,
        max_queued: int = 1024,
        in_flight: int = 2,
        max_restarts: int = 3,
        persistent: bool = False,
        reset_persistent_windows: bool | None = None,
        startup_timeout: float = 60.0,
        trace: TraceHook | None = None,
    ) -> None:
        declared: Declared = declare(programs, config, callbacks)
        self.config = declared.config
        self._callbacks = declared.callbacks
        self._options = WorkerOptions.checked(
            max_queued, in_flight, startup_timeout, policy, trace, max_restarts, persistent, reset_persistent_windows
        )
        self._backend = backend_of(backend)
        self._policy: Policy = PhaseFair() if policy is None else policy
        self._trace = trace
        self._registry = Registry()
        for program in declared.programs:
            self._registry.add(self._new_entry(program, self._callbacks))
        self._thread = 0
        self._runs: Callable[[], bool] = _no_loop
        self._counter = Counter()
        self._tensors = Tensors.of_new_worker()
        self._supervisor: Supervisor | None = None
        self._system: System | None = None
        self._memory: Memory | None = None

    # ------------------------------------------------------------------------------------------ start and end

    async def __aenter__(self) -> Self:
        if self._supervisor is not None:
            raise RuntimeError("a worker can be entered once; make another one")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError("pypto_actors runs on a running asyncio loop, not on trio; use anyio.run(…, backend='asyncio')") from None
        self._thread = get_ident()
        self._runs = loop.is_running  # in the thread that entered: if not, then another loop does
        capacity = self.config.capacity
        settings = Settings((capacity,) * self.config.world_size, self._options.in_flight, self._policy, self._options.max_restarts)
        system = System(loop, settings, self._options.max_queued, self._tensors, self._trace)
        self._memory = Memory(system, self._counter, self._tensors, self.config.world_size)
        self._supervisor = Supervisor(self, system, self._backend, self._counter, self.config, self._callbacks)
        self._system = system
        try:
            await self._supervisor.start(self._options.startup_timeout)
        except BaseException:
            self._tensors.epoch += 1
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._supervisor is None:
            self._refuse(None)
        self._check_thread("leaving the worker")
        refuse_inside_callback(self, "leaving the worker")
        await self._supervisor.leave("drain" if kind is None else "abort")

    async def aclose(self, mode: Literal["drain", "abort"] = "drain", timeout: float | None = None) -> None:
        """Close, as leaving the `async with` does. May be called twice, by several tasks, and under load: all return when it is done.

        Args:
            mode: `drain`: what was accepted ends first; `abort`: who is queued gets `WorkerClosedError` at once, what runs ends.
            timeout: seconds after which a drain becomes an abort.
        """
        if mode not in ("drain", "abort"):
            raise ValueError(f"mode must be 'drain' or 'abort', got {mode!r}")
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, Real) or not timeout >= 0):
            raise ValueError(f"timeout is a number of seconds from 0, or None, got {timeout!r}")
        if self._supervisor is None:
            return
        self._check_thread("aclose")
        refuse_inside_callback(self, "aclose")
        await self._supervisor.close(mode, timeout)

    # ------------------------------------------------------------------------------------------ dispatch

    async def run(
        self,
        program: AnyProgram,
        /,
        *args: Any,
        device: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        after: Iterable[DistributedRunHandle] = (),
    ) -> RunResult:
        """Dispatch and wait for the result.

        Cancelled while the dispatch is queued, it leaves the queue and has no effect; while it runs, the cancellation is raised when the
        kernels have ended, so that nothing writes the arrays afterwards. Who wants to leave earlier uses `submit` and `handle.wait`.

        Args:
            program: a registered program.
            args: one for each parameter, or (return style) without the `Out` parameters: numpy arrays, device tensors, scalars.
            device: the rank where steps without a device begin.
            priority: higher goes first, where there is a choice.
            deadline: loop time in seconds; still queued then, it fails.
            after: handles that must succeed first.

        Raises:
            ArgumentTypeError, ArgumentValueError, StaleTensorError, PlacementError, UnknownProgramError, ProgramError: a fault of the call.
            KernelError, DeviceFailedError, DependencyFailedError, DeadlineExceededError, DeviceOutOfMemoryError: its outcome.
            WorkerClosedError: the worker is closing.
        """
        system = self._enter("run")
        if device is None and priority == 0 and type(priority) is int and deadline is None and after == ():
            options = PLAIN
        else:
            options = options_of(device, priority, deadline, after, self, self.config.world_size)
        call = prepare(self._registry.entry(program), args, self._tensors)
        handle = self._begin(system, call, options)
        if handle is None:
            return await self._run_waiting(system, call, options)
        try:
            if not handle.state.final:
                await handle.waiters
        except asyncio.CancelledError:
            await abandon(system, handle)
            raise
        return handle.result()

    async def submit(
        self,
        program: AnyProgram,
        /,
        *args: Any,
        device: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        after: Iterable[DistributedRunHandle] = (),
    ) -> DistributedRunHandle:
        """Dispatch, and wait only for room in the queue; arguments and errors as of `run`. Suspends only where there is no room."""
        system = self._enter("submit")
        return await self._submit(system, self._registry.entry(program), args, self._checked(device, priority, deadline, after))

    def submit_nowait(
        self,
        program: AnyProgram,
        /,
        *args: Any,
        device: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
        after: Iterable[DistributedRunHandle] = (),
    ) -> DistributedRunHandle:
        """The same, or `QueueFullError`; never suspends. Also for host callbacks, on the loop and in threads."""
        try:
            system = self._open_system()
        except RuntimeError:
            if self._in_callback_thread():
                work = partial(self.submit_nowait, program, *args, device=device, priority=priority, deadline=deadline, after=after)
                return self._on_loop(work)
            raise
        if device is None and priority == 0 and type(priority) is int and deadline is None and after == ():
            options = PLAIN
        else:
            options = options_of(device, priority, deadline, after, self, self.config.world_size)
        call = prepare(self._registry.entry(program), args, self._tensors)
        admission = system.admission
        if admission.room <= 0 or admission.waiting:
            raise queue_full(system)
        admission.room -= 1
        return accept(system, self, self._counter, call, options)

    async def __call__(self, *args: Any) -> RunResult:
        """`run` of the only program; with several, `AmbiguousProgramError`."""
        if len(self._registry) != 1:
            known = ", ".join(repr(program.name) for program in self._registry) or "none"
            raise AmbiguousProgramError(f"a worker is called where it has one program, this one has {known}; use `run(program, …)`")
        return await self.run(self._registry[0], *args)

    def _checked(self, device: int | None, priority: int, deadline: float | None, after: Iterable[DistributedRunHandle]) -> Options:
        if device is None and priority == 0 and type(priority) is int and deadline is None and after == ():
            return PLAIN
        return options_of(device, priority, deadline, after, self, self.config.world_size)

    def _begin(self, system: System, call: Prepared, options: Options) -> DistributedRunHandle | None:
        """Accept a call that the caller will await; `None`: there is no room."""
        admission = system.admission
        if admission.room <= 0 or admission.waiting:
            return None
        admission.room -= 1
        # the waiter is made before the device hears of the dispatch: afterwards there is little left to do
        return accept(system, self, self._counter, call, options, system.waiter())

    async def _run_waiting(self, system: System, call: Prepared, options: Options) -> RunResult:
        """`run` where there is no room."""
        handle = await self._room(system, call, options, owned=True)
        await own(system, handle)
        return handle.result()

    async def _submit(self, system: System, entry: Entry, args: tuple[Any, ...], options: Options) -> DistributedRunHandle:
        return await self._submit_prepared(system, prepare(entry, args, self._tensors), options)

    async def _submit_prepared(self, system: System, call: Prepared, options: Options) -> DistributedRunHandle:
        if system.admission.take():
            return accept(system, self, self._counter, call, options)
        return await self._room(system, call, options, owned=False)

    def _submit_prepared_nowait(self, system: System, call: Prepared, options: Options) -> DistributedRunHandle:
        if not system.admission.take():
            raise queue_full(system)
        return accept(system, self, self._counter, call, options)

    async def _room(self, system: System, call: Prepared, options: Options, owned: bool) -> DistributedRunHandle:
        waiting = Waiting(system, self, self._counter, call, options, self._tensors, self._is_open)
        system.admission.waiting.append(waiting)
        try:
            await waiting.future
        except asyncio.CancelledError as cancellation:
            waiting.give_up()
            handle = waiting.handle
            if handle is None or handle.cancel():
                raise
            task = asyncio.current_task()
            if owned or task is None:
                await own(system, handle)
                raise
            # It runs already, so it was submitted: the caller gets the handle, and the cancellation at its next await.
            handle.asked = True
            system.loop.call_soon(_cancel_again, task, *cancellation.args[:1])
        assert waiting.handle is not None
        return waiting.handle

    def bind(self, program: AnyProgram, /, **fixed: Any) -> BoundProgram:
        """Fix arguments by name, checked once; the rest comes with each call.

        Raises:
            ArgumentTypeError, ArgumentValueError, StaleTensorError, UnknownProgramError: as `run`, and for names that are no parameters.
        """
        self._open_system()
        return BoundProgram(self, self._registry.entry(program), self._tensors, fixed)

    # ------------------------------------------------------------------------------------------ programs

    @property
    def registry(self) -> Sequence[AnyProgram]:
        """The registered programs, oldest first; read-only."""
        return self._registry

    async def register(self, program: AnyProgram) -> RegistrationHandle:
        """Register a program, also while others run; of a known one, a further handle.

        Raises:
            TypeError: this is no program.
            ValueError: it declares a callback that the worker has not bound.
            ProgramMismatchError: it was compiled for another platform, runtime or other devices.
            WorkerClosedError: the worker is closing.
        """
        self._enter("register")
        declared = declare([program], self.config, None, self._callbacks)
        entry = self._registry.find(plain(program))
        if entry is None:
            entry = self._new_entry(program, declared.callbacks)
            self._registry.add(entry)
        return RegistrationHandle(self, entry)

    def _new_entry(self, program: AnyProgram, callbacks: Mapping[str, Callable[..., Any]]) -> Entry:
        options = self._options
        return Entry(plain(program), program, self.config.world_size, callbacks, options.persistent, options.reset_windows)

    async def _unregister(self, entry: Entry) -> None:
        system = self._enter("unregister")
        if entry.active:
            self._registry.remove(entry)
            self._tensors.epoch += 1
        record = Record(self._counter.next())
        system.tell(Retire(record.id, entry.program), record)
        await self._follow(record)

    # ------------------------------------------------------------------------------------------ memory

    async def alloc_tensor(self, shape: int | Sequence[int], dtype: npt.DTypeLike, *, init: Any = None, device: int = 0) -> DeviceTensor:
        """Memory on a device, zeroed, or filled from the host array `init` of the same shape and dtype. Never waits for memory.

        Raises:
            DeviceOutOfMemoryError: it does not fit; nothing has changed.
            ArgumentTypeError, ArgumentValueError: shape, dtype, `init` or `device` do not fit.
        """
        self._enter("alloc_tensor")
        return await self._calls().allocate(shape, dtype, init, device)

    async def alloc_stacked_tensor(self, host: npt.NDArray[Any], *, devices: Sequence[int] | None = None) -> StackedDeviceTensor:
        """A device tensor for each leading index of `host`: shard `i`, of `host.shape[1:]`, on `devices[i]` (default: device `i`).

        Raises:
            DeviceOutOfMemoryError: a shard does not fit; none was allocated.
            ArgumentTypeError, ArgumentValueError: `host` or `devices` do not fit.
        """
        self._enter("alloc_stacked_tensor")
        return await self._calls().allocate_stacked(host, devices)

    async def free_tensor(self, tensor: AnyTensor) -> None:
        """Give memory back. The handle is stale from the call on; returns when the memory is free. A second free does nothing.

        Cancelled, it leaves at once, and the memory is freed as soon as nobody uses it any more.

        Raises:
            ArgumentTypeError: this is no device tensor.
            ArgumentValueError: it is a view; free the tensor that it is a view of.
            StaleTensorError: it belongs to another worker.
        """
        memory = self._calls()
        tensors_of(tensor, "what is freed")
        if self._supervisor is not None and self._supervisor.closed:
            return
        self._check_thread("free_tensor")
        refuse_inside_callback(self, "free_tensor")
        record = memory.begin_free(tensor)
        if record is not None:
            await self._follow(record)

    async def copy_to(self, dst: AnyTensor, src: npt.NDArray[Any]) -> None:
        """Host array to device tensor, of the same shape and dtype, in order with what was accepted before. Cancelled, it behaves as `run`.

        Raises:
            ArgumentTypeError, ArgumentValueError: kind, shape or dtype do not fit.
            StaleTensorError: the tensor was freed, or belongs to another worker.
            DeviceFailedError: its device has died.
        """
        self._enter("copy_to")
        await self._calls().write(dst, src)

    async def copy_from(self, dst: npt.NDArray[Any], src: AnyTensor) -> None:
        """Device tensor to host array, of the same shape and dtype, which must be writable; otherwise as `copy_to`."""
        self._enter("copy_from")
        await self._calls().read(dst, src)

    async def read(self, tensor: AnyTensor) -> npt.NDArray[Any]:
        """A new host array with the tensor's values; errors as of `copy_to`."""
        self._enter("read")
        memory = self._calls()
        if not isinstance(tensor, (DeviceTensor, StackedDeviceTensor)):
            await memory.read(None, tensor)
        array = np.empty(tensor.shape, tensor.dtype)
        await memory.read(array, tensor)
        return array

    async def transfer(self, dst: AnyTensor, src: AnyTensor) -> None:
        """Device tensor to device tensor of the same shape and dtype, also across devices; errors as of `copy_to`.

        On `process`, a whole tensor of 1 MiB or more that no kernel has written yet, such as weights, is copied only when one of both is
        written; who writes it then waits for the copy, and fails with `DeviceOutOfMemoryError` if the host has no memory for it.
        """
        self._enter("transfer")
        await self._calls().transfer(dst, src)

    # ------------------------------------------------------------------------------------------ the whole

    async def drain(self) -> None:
        """Return when everything accepted before the call has ended. Cancelled, it leaves at once.

        Raises no failure of a dispatch; `WorkerClosedError`: the worker is closing.
        """
        system = self._enter("drain")
        record = Record(self._counter.next())
        system.tell(Drain(record.id), record)
        await self._follow(record)

    async def pause(self, mode: Literal["wait", "keep", "abort"] = "wait") -> None:
        """Hand over nothing more, until `resume`; later dispatches are accepted up to the bound and wait.

        Cancelled, it leaves at once, and the worker stays paused.

        Args:
            mode: `wait`: return when what was accepted before has ended; `keep`: when what runs has ended, the queue is kept; `abort`: the
                same, and the queue is cancelled (`RunCancelledError`).

        Raises:
            ValueError: an unknown mode.
            WorkerClosedError: the worker is closing.
        """
        if mode not in ("wait", "keep", "abort"):
            raise ValueError(f"mode must be 'wait', 'keep' or 'abort', got {mode!r}")
        system = self._enter("pause")
        record = Record(self._counter.next())
        system.tell(Pause(record.id, mode), record)
        await self._follow(record)

    async def resume(self) -> None:
        """Hand over again what `pause` held back."""
        system = self._enter("resume")
        system.tell(Resume())
        system.flush()

    def statistics(self) -> Statistics:
        """A frozen snapshot; also after the end."""
        if self._system is None:
            raise RuntimeError("the worker was not entered; use `async with`")
        self._check_thread("statistics")
        self._system.flush()
        return self._system.coordinator.statistics()

    def committed_device_memory(self, device: int = 0) -> int:
        """Bytes in use on the device of rank `device`; also after the end. Raises `ArgumentValueError` where there is no such device."""
        return self.statistics().devices[rank_of(device, self.config.world_size)].memory_used

    # ------------------------------------------------------------------------------------------ checks

    def _check_thread(self, what: str) -> None:
        """Raise if this is another thread than that of the loop."""
        if get_ident() != self._thread:
            raise RuntimeError(
                f"{what} from another thread than the worker's loop; use anyio.from_thread.run(…) (or run_sync) in a worker thread"
            )

    def _in_callback_thread(self) -> bool:
        """Is this the thread of one of the worker's own callbacks, at work?"""
        inside = INSIDE.get()
        return get_ident() != self._thread and inside is not None and inside.worker is self and inside.active

    def _on_loop(self, work: Callable[[], DistributedRunHandle]) -> DistributedRunHandle:
        """Have a call made on the loop, which does not wait for the callback thread that asks for it."""
        assert self._system is not None
        answer: Future[DistributedRunHandle] = Future()

        def make() -> None:
            try:
                answer.set_result(work())
            except BaseException as error:
                answer.set_exception(error)

        self._system.loop.call_soon_threadsafe(make)
        return answer.result()

    def _is_open(self) -> bool:
        return self._supervisor is not None and self._supervisor.open

    def _open_system(self) -> System:
        """The system, for a call that does not wait."""
        supervisor = self._supervisor
        if supervisor is None or not supervisor.open or get_ident() != self._thread:
            self._refuse(supervisor)
        return self._system  # type: ignore[return-value]

    def _enter(self, what: str) -> System:
        """The system, for a call that waits."""
        supervisor = self._supervisor
        if supervisor is None or not supervisor.open or get_ident() != self._thread or not self._runs():
            self._refuse(supervisor)
        if INSIDE.get() is not None:
            refuse_inside_callback(self, what)
        return self._system  # type: ignore[return-value]

    def _refuse(self, supervisor: Supervisor | None) -> NoReturn:
        if supervisor is None:
            raise RuntimeError("the worker was not entered; use `async with DistributedWorker(…) as worker`")
        self._check_thread("a call")
        if not self._runs():
            raise RuntimeError("a call from another loop than that which entered the worker; call it there, or enter a worker on this one")
        raise WorkerClosedError("the worker is closed, or closing; it takes no more calls")

    def _calls(self) -> Memory:
        if self._memory is None:
            raise RuntimeError("the worker was not entered; use `async with DistributedWorker(…) as worker`")
        return self._memory

    async def _follow(self, record: Record) -> None:
        assert self._memory is not None
        await self._memory.follow(record)

    def __repr__(self) -> str:
        state = "not entered" if self._supervisor is None else self._supervisor.state
        return f"<DistributedWorker of {self.config.world_size} devices, {self._backend.name}, {len(self._registry)} programs: {state}>"


def _no_loop() -> bool:
    return False


def _cancel_again(task: asyncio.Task[Any], message: object = None) -> None:
    """Deliver a cancellation at the task's next await, unless who cancelled it (a timeout, say) has taken that back meanwhile."""
    if task.cancelling() and not task.done():
        task.uncancel()
        task.cancel(message)


DistributedCompiledProgram.open_worker = DistributedWorker
