"""What does a dispatch cost on `process`, against a bare protocol between two processes?

The bare protocol is an asyncio `BufferedProtocol` on a socket pair (a `Protocol` reads into a new buffer of 256 KiB each time, which
makes it twice as slow in some runs): a number goes out by msgpack, the other process, which blocks
on its socket, sends it back, and a future is resolved. Once one after another, and once 64 outstanding. Needed: 1.4 and
2.5 times that, wanted: 1.15 and 1.5. For the 64, `in_flight` is 64, so that as many are under way here as there; beside
it stands the default of 2. In one half of the rounds the other processes are on the core of the loop, in the other half on another.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

import msgspec

from benchmarks import harness, noop
from benchmarks.harness import Answer
from benchmarks.placement import paired
from pypto_actors.backends import ProcessBackend

ECHO = """
import socket, struct, sys
import msgspec
link = socket.socket(fileno=int(sys.argv[1]))
encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(int).decode
rest = b""
while data := link.recv(1 << 16):
    rest += data
    at, answers = 0, []
    while at + 4 <= len(rest):
        end = at + 4 + struct.unpack_from("<I", rest, at)[0]
        if end > len(rest):
            break
        body = encode(decode(rest[at + 4 : end]))
        answers.append(struct.pack("<I", len(body)) + body)
        at = end
    rest = rest[at:]
    if answers:
        link.sendall(b"".join(answers))
"""


def echo(link: int) -> subprocess.Popen[bytes]:
    """The other process, which sends back what comes."""
    return subprocess.Popen([sys.executable, "-c", ECHO, str(link)], pass_fds=[link])


class Bare(asyncio.BufferedProtocol):
    """The parent's side: numbers out, the same numbers in."""

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(int).decode
        self._rest = b""
        self._buffer = memoryview(bytearray(1 << 16))
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._last = 0
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        ours, theirs = socket.socketpair()
        self._process = echo(theirs.fileno())
        theirs.close()
        self._transport, _ = await self._loop.create_connection(lambda: self, sock=ours)
        await self.ask()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._transport.close()
        await self._loop.run_in_executor(None, self._process.wait)

    @property
    def pid(self) -> int:
        """Of the other process."""
        return self._process.pid

    def ask(self) -> asyncio.Future[None]:
        """One number there and back."""
        self._last += 1
        body = self._encode(self._last)
        self._transport.write(struct.pack("<I", len(body)) + body)
        future = self._waiting[self._last] = self._loop.create_future()
        return future

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Resolve the future of each number."""
        rest = self._rest + bytes(self._buffer[:nbytes])
        at = 0
        while at + 4 <= len(rest):
            end = at + 4 + struct.unpack_from("<I", rest, at)[0]
            if end > len(rest):
                break
            self._waiting.pop(self._decode(rest[at + 4 : end])).set_result(None)
            at = end
        self._rest = rest[at:]

    async def round_trips(self, count: int) -> float:
        """Seconds for each, one after another."""
        start = time.perf_counter()
        for _ in range(count):
            await self.ask()
        return (time.perf_counter() - start) / count

    async def bursts(self, count: int) -> float:
        """Seconds for each, 64 asked and then awaited."""
        start = time.perf_counter()
        for _ in range(count):
            futures = [self.ask() for _ in range(noop.OUTSTANDING)]
            for future in futures:
                await future
        return (time.perf_counter() - start) / (count * noop.OUTSTANDING)


async def measure_async(quick: bool) -> list[Answer]:
    """Blocks of dispatches beside blocks of bare round trips."""
    rounds, count, bursts = (3, 20, 2) if quick else (100, 100, 10)
    many = noop.OUTSTANDING
    backends = ProcessBackend(), ProcessBackend()
    async with (
        noop.opened(backends[0]) as worker,
        noop.opened(backends[1], in_flight=many) as wide,
        Bare() as bare,
    ):
        others = [bare.pid, *(pid for backend in backends for pid in backend.pids)]
        tensors, own = await noop.pair(worker), [await noop.pair(worker) for _ in range(many)]
        wide_own = [await noop.pair(wide) for _ in range(many)]
        one, placement = await paired(
            rounds, {"bare, 1": lambda: bare.round_trips(count), "run, 1": lambda: noop.runs(worker, tensors, count)}, others, warm_up=5
        )
        all_64, placement_64 = await paired(
            rounds,
            {
                "bare, 64": lambda: bare.bursts(bursts),
                "submitted, 64": lambda: noop.bursts(wide, wide_own, bursts),
                "submitted, 64, in_flight=2": lambda: noop.bursts(worker, own, bursts),
            },
            others,
            warm_up=5,
        )
    notes = {**harness.microseconds(one), **harness.microseconds(all_64)}
    against, how = "bare socketpair protocol + msgpack", "in blocks that alternate"
    values = harness.ratios(all_64, "submitted, 64", "bare, 64")
    default = harness.ratios(all_64, "submitted, 64, in_flight=2", "bare, 64")
    return [
        Answer("no-op `run` on process", against, "×", 1.4, 1.15, harness.ratios(one, "run, 1", "bare, 1"), f"{how}; {placement}", notes),
        Answer("64 outstanding on process, each", against, "×", 2.5, 1.5, values, f"in_flight=64, {how}; {placement_64}", notes),
        Answer("64 outstanding on process, each, in_flight=2", against, "×", None, None, default, how, notes),
    ]


def measure(quick: bool) -> list[Answer]:
    """The answers to this question."""
    return asyncio.run(measure_async(quick))


if __name__ == "__main__":
    harness.main(__doc__, measure)
