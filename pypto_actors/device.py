"""The device actor: one for each device. It takes messages in order and has its executor do them; only it knows the device's bytes."""

from __future__ import annotations

from collections import deque
from typing import assert_never

from pypto_actors.executor import Executor
from pypto_actors.messages import Commit, Dispatch, Read, Release, ToDevice, Transfer, Write


class DeviceActor:
    """Its mailbox, and the executor that computes for it."""

    __slots__ = ("executor", "mail", "rank")

    def __init__(self, rank: int, executor: Executor) -> None:
        self.rank = rank
        self.executor = executor
        self.mail: deque[ToDevice] | None = None  # made for the first message: thousands of devices may never get one

    def __repr__(self) -> str:
        return f"<DeviceActor {self.rank}: {len(self.mail or ())} messages waiting>"

    def receive(self, message: ToDevice) -> None:
        if self.executor.dead:  # what it was to do has failed already; who was to meet it there must learn of it
            if type(message) is Dispatch:
                self.executor.desert(message)
            return
        match message:
            case Dispatch():
                self.executor.dispatch(message)
            case Write() | Read() | Transfer():
                self.executor.copy(message)
            case Commit():
                self.executor.commit(message)
            case Release():
                self.executor.release(message)
            case _:
                assert_never(message)
