"""`VirtualTimeLoop` and what comes from outside of it: threads, sockets, signals. Time stands while any of it works."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from pypto_actors.testing.virtual_time import VirtualTimeLoop
from tests.testing.test_virtual_time import now, run


def test_time_stands_while_an_executor_works() -> None:
    async def main() -> float:
        gate = threading.Event()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(1, gate.set)  # would let the work end, were time not to stand
        work = loop.run_in_executor(None, gate.wait)
        loop.call_soon_threadsafe(lambda: None)
        await asyncio.sleep(0)
        threading.Thread(target=gate.set).start()
        assert await work
        timer.cancel()
        return now()

    assert run(main) == 0.0


def test_time_stands_while_anyio_threads_work() -> None:
    async def main() -> float:
        async def called_back(gate: threading.Event) -> None:
            gate.set()

        def work() -> str:
            gate = threading.Event()
            anyio.from_thread.run(called_back, gate)
            gate.wait()
            return threading.current_thread().name

        with anyio.fail_after(1):
            for _ in range(3):
                assert "AnyIO" in await anyio.to_thread.run_sync(work)
        assert await asyncio.to_thread(lambda: 3) == 3
        await anyio.sleep(5)  # the threads are still there, idle
        return now()

    assert run(main) == 5.0


def test_getaddrinfo() -> None:
    async def main() -> float:
        async with asyncio.timeout(1):
            assert await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
        return now()

    assert run(main) == 0.0


def test_sockets_of_one_loop() -> None:
    async def main() -> bytes:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\n")
            line = await reader.read()
            writer.close()
            await writer.wait_closed()
        return line

    assert run(main) == b"hello\n"


def test_ctrl_c_ends_a_run_that_waits_for_a_thread() -> None:
    gate = threading.Event()
    cleaned = []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        gate.wait()

    async def main() -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(None, work)
        finally:
            gate.set()
            cleaned.append(now())

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert cleaned == [0.0]


def test_signal_handlers_are_heard_while_the_loop_is_busy_and_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    polls: list[float | None] = []
    poll = VirtualTimeLoop._poll

    def signal_when_it_waits(loop: VirtualTimeLoop, timeout: float | None) -> bool:
        polls.append(timeout)
        if timeout is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return poll(loop, timeout)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, heard.set)
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(10):
            await asyncio.sleep(0)
        assert heard.is_set()
        heard.clear()
        await heard.wait()
        assert loop.remove_signal_handler(signal.SIGTERM)
        return now()

    monkeypatch.setattr(VirtualTimeLoop, "_poll", signal_when_it_waits)
    assert run(main) == 0.0
    assert None in polls
