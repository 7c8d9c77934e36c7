"""`backend="ray"`: one Ray actor for each device, on a cluster or on this machine. All transport is Ray's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pypto_actors.backends.blas import check_blas_threads
from pypto_actors.backends.memory import Interconnect
from pypto_actors.backends.ray_cluster import STRATEGIES, Placement, Places, Session, check_ray, import_path, in_thread
from pypto_actors.backends.ray_crossing import Crossing
from pypto_actors.backends.ray_executor import RayExecutor
from pypto_actors.backends.ray_link import Inbox
from pypto_actors.backends.ray_memory import RayMemory
from pypto_actors.executor import Desk, Executor, clock_of

GRACE = 10.0  # seconds from the end of the work, or from an abort, after which an actor that still owes an answer is killed


class RayBackend:
    """Makes executors with a Ray actor each.

    Ray that is initialised already is used and left as it is. Otherwise `ray.init` is called, and `ray.shutdown` at the end; several
    workers of a process share it.

    Args:
        address: of a cluster, as `ray.init` takes it; `None`: what `ray.init` finds (`RAY_ADDRESS`, a cluster on this machine), else a
            local Ray of its own; `"local"`: always that.
        placement: `"any"`: each actor where Ray likes; `"packed"`: on few nodes; `"spread"`: on many; `"one_per_node"`: each on a node of
            its own, or the start waits for nodes until its time is over.
        cpus: CPUs that each actor reserves of its node; 0: it fits everywhere.
        resources: what each actor reserves besides, such as `{"npu": 1}`.
        blas_threads: threads of BLAS in each actor, set before numpy loads there; `None`: what the environment there says.
        runtime_env: the actors' runtime environment, as Ray takes it: there `pypto_actors` must be found in it, or installed on the nodes.
            Without one, the actors start faster, and import from the paths of this process that their nodes have too.
        init_options: further arguments of `ray.init`, such as `{"num_cpus": 8}` or `{"log_to_driver": False}`.

    Raises:
        ValueError: an argument is out of range.
        TypeError: `resources`, `runtime_env` or `init_options` is no mapping.
        ImportError: Ray or cloudpickle is not installed (extra `ray`).
    """

    name = "ray"
    virtual_time = False
    callbacks_in_threads = True

    def __init__(
        self,
        address: str | None = None,
        *,
        placement: Placement = "any",
        cpus: float = 0,
        resources: Mapping[str, float] | None = None,
        blas_threads: int | None = 1,
        runtime_env: Mapping[str, Any] | None = None,
        init_options: Mapping[str, Any] | None = None,
    ) -> None:
        if address is not None and (not isinstance(address, str) or not address):
            raise ValueError(f"address is a string such as '10.0.0.1:6379', 'auto' or 'local', or None, got {address!r}")
        if address is not None and "://" in address:
            raise ValueError(f"the Ray Client ({address!r}) is not supported; run on a node of the cluster and give its address, or 'auto'")
        if placement not in STRATEGIES:
            raise ValueError(f"unknown placement {placement!r}; there are {', '.join(map(repr, STRATEGIES))}")
        _check_amount("cpus", cpus, zero=True)
        for what, mapping in (("resources", resources), ("runtime_env", runtime_env), ("init_options", init_options)):
            if mapping is not None and not isinstance(mapping, Mapping):
                raise TypeError(f"{what} is a mapping, or None, got {mapping!r}")
        for resource, amount in (resources or {}).items():
            if resource in ("CPU", "GPU") or not isinstance(resource, str):
                raise ValueError(f"resources are custom ones of the cluster's nodes, by name, got {resource!r}; for CPUs there is cpus")
            _check_amount(f"resources[{resource!r}]", amount, zero=False)
        check_blas_threads(blas_threads)
        check_ray()
        self.address = address
        self.placement = placement
        self.cpus = cpus
        self.resources = dict(resources or {})
        self.blas_threads = blas_threads
        self.runtime_env = runtime_env
        self.init_options = dict(init_options or {})
        self._executors: list[RayExecutor] = []
        self._buried: list[RayExecutor] = []  # dead ones
        self._make: Callable[[int], RayExecutor] | None = None
        self._session: Session | None = None
        self._places: Places | None = None
        self._grace: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<RayBackend address={self.address!r} placement={self.placement!r}: {len(self._executors)} actors>"

    @property
    def pids(self) -> tuple[int, ...]:
        """The process of each device's actor, by rank, on its node."""
        return tuple(executor.link.pid for executor in self._executors)

    async def start(self, ranks: Sequence[int], desk: Desk, loop: asyncio.AbstractEventLoop) -> Sequence[Executor]:
        interconnect, clock = Interconnect(), clock_of(loop)
        inbox, crossing = Inbox(loop, desk), Crossing(loop, desk)
        peers: dict[int, RayMemory] = {}
        self._make = lambda rank: RayExecutor(rank, interconnect, desk, clock, inbox, crossing, peers)
        try:
            actors = await in_thread("pypto-ray-start", lambda: self._open(ranks))
            self._executors = [self._make(rank) for rank in ranks]
            await _all([self._start(executor, actor) for executor, actor in zip(self._executors, actors, strict=True)])
            dead = next((executor for executor in self._executors if executor.dead), None)
            if dead is not None:
                raise RuntimeError(f"{dead!r} ended while the others started")
        except BaseException:
            await self._end()
            raise
        for executor in self._executors:
            executor.begin()
        return tuple(self._executors)

    def _open(self, ranks: Sequence[int]) -> list[Any]:
        """Join the cluster and make the actors. In a thread."""
        self._session = Session(self.address, self.init_options)
        self._places = Places(self.placement, self.cpus, self.resources, self.runtime_env, len(ranks))
        return [self._places.make(rank) for rank in ranks]

    def _start(self, executor: RayExecutor, actor: Any) -> asyncio.Future[Any]:
        return executor.link.open(actor, self.blas_threads, import_path() if self.runtime_env is None else ())

    async def restart(self, rank: int) -> Executor:
        assert self._make is not None
        places = self._places
        assert places is not None
        if self._grace is not None:
            raise RuntimeError("the worker is closing")
        self._buried.append(self._executors[rank])
        executor = self._make(rank)
        try:
            actor = await in_thread("pypto-ray-start", partial(places.make, rank))
            await self._start(executor, actor)
        except BaseException:
            executor.end()
            self._buried.append(executor)
            raise
        executor.begin()
        self._executors[rank] = executor
        return executor

    def abort(self) -> None:
        """The worker aborts: an actor that still owes an answer after the time of grace is killed."""
        if self._grace is None:
            self._grace = asyncio.get_running_loop().call_later(GRACE, self._kill_who_owes)

    def _kill_who_owes(self) -> None:
        for executor in self._executors:
            if executor.link.owed:
                executor.kill(f"its actor did not end within {GRACE:.0f} s of an abort, and was killed")

    async def stop(self) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
        executors = [*self._executors, *self._buried]
        try:
            for executor in executors:
                executor.end()
            waiting = [executor.link.gone for executor in executors if executor.link.opened and not executor.link.gone.done()]
            if waiting:
                await asyncio.wait(waiting, timeout=GRACE)
        finally:
            for executor in executors:
                executor.join()
            await in_thread("pypto-ray-stop", self._close)
            self._executors, self._buried = [], []

    def _close(self) -> None:
        """Give the places back, and leave the cluster. In a thread."""
        places, self._places = self._places, None
        session, self._session = self._session, None
        try:
            if places is not None:
                places.end()
        finally:
            if session is not None:
                session.leave()


def _check_amount(what: str, value: object, zero: bool) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):  # type: ignore[operator]
        raise ValueError(f"{what} is a number {'from' if zero else 'above'} 0, got {value!r}")


async def _all(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Wait until all are done; raises the first failure at once."""
    waiting = set(futures)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            future.result()
