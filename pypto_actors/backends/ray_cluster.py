"""Ray itself: joining or starting a cluster, and where on it the actors of devices go. All of it may block: it is called in threads."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Literal, TypeAlias, TypeVar

from pypto_actors.backends.ray_boot import device_class
from pypto_actors.backends.thread import WorkThread

T = TypeVar("T")
Placement: TypeAlias = Literal["any", "packed", "spread", "one_per_node"]
# Of each placement, the strategy of its placement group; without one, each actor goes where Ray likes.
STRATEGIES: dict[str, str | None] = {"any": None, "packed": "PACK", "spread": "SPREAD", "one_per_node": "STRICT_SPREAD"}
LEAST_CPU = 0.001  # a bundle of a placement group must ask for something


def check_ray() -> None:
    """Is it there? An `ImportError` says how to get it. Nothing is loaded yet."""
    for name in ("cloudpickle", "ray"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"backend='ray' needs {name}: pip install 'pypto_actors[ray]'")


async def in_thread(name: str, work: Callable[[], T]) -> T:
    """Have `work` done in a thread of its own. Who is cancelled meanwhile waits for its end all the same."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            loop.call_soon_threadsafe(future.set_exception, error)
        else:
            loop.call_soon_threadsafe(future.set_result, result)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    thread.join()  # it has nothing left to do
    if cancelled is not None:
        future.exception()
        raise cancelled
    return future.result()


class _Ours:
    """The one Ray of this process, if a backend has started it: it ends with the last worker that uses it.

    Its processes end with the thread that started them (Linux: PR_SET_PDEATHSIG), so that thread lives as long.
    """

    lock = threading.Lock()
    users = 0
    starts = 0
    thread: WorkThread | None = None

    @classmethod
    def do(cls, work: Callable[[], Any]) -> None:
        """Do `work` in that thread, and wait for it."""
        if cls.thread is None:
            cls.thread = WorkThread("pypto-ray")
        errors: SimpleQueue[BaseException | None] = SimpleQueue()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                errors.put(error)
            else:
                errors.put(None)

        cls.thread.put(run)
        error = errors.get()
        if error is not None:
            raise error

    @classmethod
    def end(cls) -> None:
        """Let the thread end."""
        if cls.thread is not None:
            cls.thread.end()
            cls.thread.join()
            cls.thread = None


class Session:
    """A worker's use of Ray. Ray that runs already is used as it is and left as it is."""

    def __init__(self, address: str | None, options: Mapping[str, Any]) -> None:
        import ray

        self._open = True
        self._start = 0
        with _Ours.lock:
            self._ours = _Ours.users > 0
            if not ray.is_initialized():
                settings = {"include_dashboard": False, "log_to_driver": True, "logging_level": logging.ERROR, **options}
                try:
                    _Ours.do(lambda: ray.init(address=address, **settings))
                except BaseException:
                    _Ours.do(ray.shutdown)
                    _Ours.end()
                    raise
                self._ours, _Ours.users = True, 0
                _Ours.starts += 1
            elif address not in (None, "auto", "local", ray.get_runtime_context().gcs_address):
                raise RuntimeError(
                    f"Ray is initialised already, with the cluster at {ray.get_runtime_context().gcs_address}, and a process has only one; "
                    f"got address={address!r}: call ray.shutdown() first, or leave the address out"
                )
            if self._ours:
                _Ours.users += 1
                self._start = _Ours.starts

    def leave(self) -> None:
        """End Ray if it is ours and nobody else uses it."""
        import ray

        with _Ours.lock:
            if self._open and self._ours and self._start == _Ours.starts:  # else somebody has ended it, and it was started again
                _Ours.users -= 1
                if _Ours.users == 0:
                    _Ours.do(ray.shutdown)
                    _Ours.end()
            self._open = False


class Places:
    """Makes the actors of devices, each in its place."""

    def __init__(
        self, placement: str, cpus: float, resources: Mapping[str, float], runtime_env: Mapping[str, Any] | None, count: int
    ) -> None:
        import ray

        self._options: dict[str, Any] = {"num_cpus": cpus, "resources": dict(resources), "max_restarts": 0, "max_task_retries": 0}
        if runtime_env is not None:
            self._options["runtime_env"] = dict(runtime_env)
        self._class = device_class(__name__.partition(".")[0])
        self._group: Any = None
        strategy = STRATEGIES[placement]
        if strategy is not None:
            bundle = {"CPU": cpus or LEAST_CPU, **resources}
            self._options["num_cpus"] = cpus or LEAST_CPU
            self._group = ray.util.placement_group([bundle] * count, strategy=strategy)

    def make(self, rank: int) -> Any:
        """The actor of a device; Ray starts it when there is room for it."""
        options = self._options
        if self._group is not None:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            options = options | {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, rank)}
        return self._class.options(**options).remote(rank)

    def end(self) -> None:
        """Give the places back."""
        import ray

        if self._group is not None and ray.is_initialized():
            ray.util.remove_placement_group(self._group)
        self._group = None


def import_path() -> Sequence[str]:
    """Where an actor finds what is imported here, if it is on this machine or one like it."""
    return list(dict.fromkeys(os.path.abspath(each) for each in sys.path))
