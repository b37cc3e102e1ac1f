"""What leads from a worker to its brokers, as the loop uses it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from zmq_offload.protocol import messages as wire

if TYPE_CHECKING:
    from zmq_offload.net.line import Event
    from zmq_offload.net.pyzmq_internals import Sendable


class Links(Protocol):
    """One connection to each of several brokers. A broker is given by its index.

    A lost connection is made again. If that is not visible, there are no Changes, and what is sent meanwhile waits.
    """

    def watch(self, descriptor: int, ready: Callable[[], None]) -> None:
        """Have `wait` call `ready` when a descriptor can be read."""

    def unwatch(self, descriptor: int) -> None:
        """Undo `watch`."""

    def wait(self, until: float, *, many: bool) -> list[Event]:
        """Wait until something happens, or until the clock says `until`. `many`: take all messages that are there, even
        if to look for a second one costs more than to wait again."""

    def look(self) -> list[Event]:
        """What happened until now."""

    def send(self, broker: int, message: wire.FromWorker, payload: Sequence[Sendable] = ()) -> None:
        """Send a message, at the latest with the next `flush`. The memory of the payload must not change."""

    def answer(self, broker: int, frames: list[Any]) -> None:
        """`send` a message that is encoded already."""

    def flush(self) -> None:
        """Send what waits, as far as the system takes it. `wait` and a long run go on with the rest."""

    def settle(self) -> None:
        """Wait, for a short time at most, until what was sent has left this process."""

    def lend(self, kind: Hashable) -> None:
        """Attempts run from now on, perhaps for long: as those of the same kind did. Until `take_back`, nothing else
        may be called."""

    def take_back(self, kind: Hashable, seconds: float) -> None:
        """They ended after so many seconds."""

    def forget(self) -> None:
        """Other kinds are run from now on."""

    def reconnect(self, broker: int) -> None:
        """Make the connection anew, whatever its state is. What was sent and is not there yet is lost."""

    def refusal(self, broker: int) -> str | None:
        """Why there is no connection, as far as that is known."""

    def shares(self, broker: int) -> bool:
        """Whether tensors pass through shared memory on the connection."""

    def close(self, lingering: Sequence[bool]) -> None:
        """Close all. For each broker: whether to wait until it got what was sent, for some seconds at most."""
