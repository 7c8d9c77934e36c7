"""The parent's side of one device process: its start, the two sockets to it, and how its end is heard. Nothing here blocks the loop."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pypto_actors.backends.wire import Frames, frame, from_process

RECEIVE = 1 << 18
KILLED_WITHIN = 1000  # ms for the end of a process that was killed


class Link:
    """`received(messages)` gets what comes from the process, `ended(reason)` its end, once and last; both are called on the loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, rank: int, received: Callable[[list[Any]], None], ended: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._rank = rank
        self._received = received
        self._end = ended
        self._frames = Frames(from_process)
        self._rest = b""  # what the socket has not taken yet
        self._over = False
        self.gone: asyncio.Future[None] = loop.create_future()

    def spawn(self, environment: Mapping[str, str]) -> None:
        """Start the process. It tells when it is ready."""
        self._socket, theirs = socket.socketpair()
        self._files, their_files = socket.socketpair()
        try:
            self._socket.setblocking(False)
            boot = Path(__file__).with_name("process_boot.py")
            package = __name__.partition(".")[0]
            fds = (theirs.fileno(), their_files.fileno())
            arguments = [*map(str, (*fds, os.getpid(), self._rank)), package, str(boot.parent.parent), os.pathsep.join(sys.path)]
            command = [sys.executable, "-P", str(boot), *arguments]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds, env=environment)
        except BaseException:
            self._socket.close()
            self._files.close()
            raise
        finally:
            theirs.close()
            their_files.close()
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._socket, self._readable)
        self._loop.add_reader(self._pidfd, self._ended)

    # ------------------------------------------------------------------------------------------ messages

    def send(self, messages: list[Any]) -> None:
        """Send, now or when there is room; what a dead process does not hear is nobody's loss."""
        if self._over:
            return
        data = frame(messages)
        if self._rest:
            self._rest += data
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        if sent < len(data):
            self._rest = data[sent:]
            self._loop.add_writer(self._socket, self._writable)

    def send_file(self, number: int, fd: int) -> None:
        """Hand a file descriptor over; a thread of the process takes it at once."""
        if not self._over:
            with suppress(BrokenPipeError, ConnectionError):
                socket.send_fds(self._files, [number.to_bytes(8, "little")], [fd])

    def _writable(self) -> None:
        try:
            sent = self._socket.send(memoryview(self._rest)[: 1 << 20])
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._rest)
        self._rest = self._rest[sent:]
        if not self._rest:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        data = self._receive()
        if data:
            self._received(self._frames.feed(data))
        elif data is not None and not self._over:  # it has closed its end, and has lost its way to answer
            self._loop.remove_reader(self._socket)
            self.kill()

    def _receive(self) -> bytes | None:
        """Bytes; none at the end, `None` where there are none yet."""
        try:
            return self._socket.recv(RECEIVE)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    # ------------------------------------------------------------------------------------------ ends

    def kill(self) -> None:
        """Have the process killed; `ended` is called when it is."""
        if not self._over:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def kill_now(self) -> None:
        """Kill the process and hear of its end before returning, which takes about a millisecond."""
        self.kill()
        if not self._over:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if poll.poll(KILLED_WITHIN):
                self._ended()

    def stopped(self) -> bool:
        """Does the process stand still, by SIGSTOP or the like?"""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return state == "T"

    def _ended(self) -> None:
        if self._over:
            return
        while data := self._receive():  # what it has answered counts
            self._received(self._frames.feed(data))
        if self._over:
            return
        self._over = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._files.close()
        os.close(self._pidfd)
        self._end(_reason(self._process.wait()))
        self.gone.set_result(None)


def _reason(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        return f"its process was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process was killed by signal {-code}"
