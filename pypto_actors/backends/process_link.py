"""The parent's side of one device process: its start, the ways to it, and how its end is heard. Nothing here blocks the loop.

Messages go by a pipe each way, which puts many small ones into one page; a socket keeps each by itself, and costs ten times as much to
read. File descriptors go by a socket.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pypto_actors.backends.wire import RECEIVE, Frames, frame, from_process

decode = from_process.decode
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
        self._frames = Frames()
        self._unsent: deque[memoryview] = deque()  # what the pipe has not taken yet
        self._over = False
        self.gone: asyncio.Future[None] = loop.create_future()

    def spawn(self, environment: Mapping[str, str]) -> None:
        """Start the process. It tells when it is ready."""
        messages, self._messages = os.pipe()
        self._answers, answers = os.pipe()
        self._files, their_files = socket.socketpair()
        try:
            os.set_blocking(self._messages, False)
            os.set_blocking(self._answers, False)
            boot = Path(__file__).with_name("process_boot.py")
            package = __name__.partition(".")[0]
            fds = (messages, answers, their_files.fileno())
            arguments = [*map(str, (*fds, os.getpid(), self._rank)), package, str(boot.parent.parent), os.pathsep.join(sys.path)]
            command = [sys.executable, "-P", str(boot), *arguments]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds, env=environment)
        except BaseException:
            self._close()
            raise
        finally:
            os.close(messages)
            os.close(answers)
            their_files.close()
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._answers, self._readable)
        self._loop.add_reader(self._pidfd, self._ended)

    def _close(self) -> None:
        os.close(self._messages)
        os.close(self._answers)
        self._files.close()

    # ------------------------------------------------------------------------------------------ messages

    def send(self, messages: list[Any]) -> None:
        """Send, now or when there is room; what a dead process does not hear is nobody's loss."""
        if self._over:
            return
        data = frame(messages)
        if self._unsent:
            self._unsent.append(memoryview(data))
            return
        try:
            sent = os.write(self._messages, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        if sent < len(data):
            self._unsent.append(memoryview(data)[sent:])
            self._loop.add_writer(self._messages, self._writable)

    def send_file(self, number: int, fd: int) -> None:
        """Hand a file descriptor over; a thread of the process takes it at once."""
        if not self._over:
            with suppress(BrokenPipeError, ConnectionError):
                socket.send_fds(self._files, [number.to_bytes(8, "little")], [fd])

    def _writable(self) -> None:
        unsent = self._unsent
        try:
            sent = os.write(self._messages, unsent[0])
        except BlockingIOError:
            return
        except OSError:
            unsent.clear()
        else:
            if sent < len(unsent[0]):
                unsent[0] = unsent[0][sent:]
            else:
                unsent.popleft()
        if not unsent:
            self._loop.remove_writer(self._messages)

    def _readable(self) -> None:
        data = self._receive()
        if data:
            self._received([decode(body) for body in self._frames.feed(data)])
        elif data is not None and not self._over:  # it has closed its end, and has lost its way to answer
            self._loop.remove_reader(self._answers)
            self.kill()

    def _receive(self) -> bytes | None:
        """Bytes; none at the end, `None` where there are none yet."""
        try:
            return os.read(self._answers, RECEIVE)
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
            self._received([decode(body) for body in self._frames.feed(data)])
        if self._over:
            return
        self._over = True
        self._loop.remove_reader(self._answers)
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_writer(self._messages)
        self._close()
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
