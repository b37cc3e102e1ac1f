"""When a supervisor starts a process again that has ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Times in seconds.

    At once after a long life; with a delay that doubles if it ends soon after each start. Each second of life takes one
    off the delay.
    """

    least: float = 0.1
    most: float = 10.0
    delay: float = 0.0

    def ended(self, lived: float) -> float:
        """Seconds to wait before the next start, after a process that lived for `lived` seconds."""
        wait = max(0.0, self.delay - lived)
        self.delay = min(self.most, max(self.least, 2 * wait))
        return wait
