"""The coordinator's way out: everything that it does to the world. A system of actors is one; a test may be another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pypto_actors.lifecycle import Record, RunState
from pypto_actors.messages import Call, ToDevice


class Port(Protocol):
    """How the coordinator acts on the world."""

    def send(self, device: int, message: ToDevice) -> None:
        """Put a message into a device's mailbox."""

    def call(self, message: Call) -> None:
        """Put a message into the host actor's mailbox."""

    def left(self) -> None:
        """A dispatch has left the queue: there is room for another."""

    def failed(self, record: Record) -> None:
        """A dispatch has failed or expired."""

    def changed(self, record: Record, before: RunState) -> None:
        """A record has moved through the life-cycle table (called while tracing)."""

    def lost(self, device: int, allocations: Sequence[int]) -> None:
        """A device has died, and with it the tensors that lived there."""

    def restart(self, device: int) -> None:
        """Start a device again; it is answered by `Restarted` or `Died`."""
