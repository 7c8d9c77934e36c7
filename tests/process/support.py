"""Programs and tools for tests of processes. Nothing waits for time: always for an event, a file descriptor or a process, with a limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np

import pypto_actors as pa

N = 8
LIMIT = 20.0  # seconds for anything at all
I64 = np.int64
Vec = ("n",)
Array: TypeAlias = np.ndarray[Any, Any]
InOutVec: TypeAlias = Annotated[pa.TensorRef, pa.InOut(Vec, I64)]


@pa.kernel
def add(x: pa.InOutArray, value: int) -> None:
    x += value


@pa.kernel
def affine(x: pa.InOutArray, times: int, plus: int) -> None:
    x[...] = (x * times + plus) % 1_000_003


def on(device: int, kernel: pa.Kernel, name: str = "program") -> pa.Program:
    """A program of one step: a kernel of an array and a number."""

    @pa.program(name=f"{name}{device}")
    def program(orch: pa.Orchestrator, x: InOutVec, value: int) -> None:
        orch.submit(kernel, x, value, device=device)

    return program


def affine_on(device: int) -> pa.Program:
    @pa.program(name=f"affine{device}")
    def program(orch: pa.Orchestrator, x: InOutVec, times: int, plus: int) -> None:
        orch.submit(affine, x, times, plus, device=device)

    return program


def opened(*programs: pa.Program, devices: int = 1, backend: Any = "process", **options: Any) -> pa.DistributedWorker:
    return pa.DistributedWorker(list(programs), config=pa.DistributedConfig(device_ids=range(devices)), backend=backend, **options)


def ints(value: int = 0, n: int = N) -> Array:
    return np.full(n, value, I64)


def children(pid: int | None = None) -> set[int]:
    """The processes below one, zombies too."""
    found: set[int] = set()
    for task in Path(f"/proc/{os.getpid() if pid is None else pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def shared_files() -> set[str]:
    return set(os.listdir("/dev/shm"))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("pypto")}


def has_ended(pid: int, limit: float = LIMIT) -> bool:
    """Wait for the end of any process."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(limit * 1000))
    finally:
        os.close(fd)


class Pipe:
    """A named pipe by which a kernel says that it is there; its path crosses with the kernel."""

    def __init__(self, directory: Path, name: str = "pipe") -> None:
        self.path = str(directory / name)
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        os.read(self._fd, 100)
        self._event.set()

    async def heard(self) -> None:
        await asyncio.wait_for(self._event.wait(), LIMIT)
        self._event.clear()

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


def stuck_kernel(path: str) -> pa.Kernel:
    """Says that it is there, and stays until it is killed."""

    @pa.kernel
    def stuck(x: pa.InOutArray, value: int) -> None:
        with open(path, "w") as pipe:
            pipe.write("x")
        threading.Event().wait()

    return stuck


async def outcome(handle: Any) -> Any:
    """The result of a handle or its error, within the limit."""
    try:
        return await asyncio.wait_for(handle.wait(), LIMIT)
    except pa.PyptoActorsError as error:
        return error
