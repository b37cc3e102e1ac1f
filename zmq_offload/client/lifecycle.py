"""The states of a synchronous client and of its socket, as tables. Pure: time is passed in.

One thread at a time drives the socket. A thread that waits for a reply drives it itself and is then the *leader*; if
another thread leads already, it is a *follower*. The *pump* is a background thread that drives while nobody leads::

                     lead                        drive                  ask
    LED, LED_AWAKE ◄──────► ASLEEP ◄────► AWAKE ◄──────► PUMPED ◄───────────────► YIELDING
                     leave   rest, wake            stop          withdraw            │ stop
                                            ▲                                        ▼
                                            └────────── lead, withdraw ─────────── OFFERED

The pump drives from OFFERED if something is unsent: it sends that and stops again. A leader that Ctrl-C keeps from
leaving, twice, may have released the socket; so LED does not keep another thread from leading or driving.

An event that a table does not have raises KeyError: it is a fault of the driver.
"""

from __future__ import annotations

import enum
import math

GRACE = 0.002
"""Seconds for which the pump leaves the socket to the thread that led last. That thread often submits more and waits
again, and handing the socket over twice costs more than a small request."""

GRACE_MOST = 0.02
"""Seconds for which it does so while more is submitted: nobody may wait for the replies that have come."""


class Turn(enum.Enum):
    """Who drives the socket, and what the pump does meanwhile."""

    __hash__ = object.__hash__  # enum's own is a Python function, and each call makes two transitions

    ASLEEP = "nobody drives; the pump sleeps until it is woken"
    AWAKE = "nobody drives; the pump is about to look for work"
    LED = "a leader drives; the pump sleeps"
    LED_AWAKE = "a leader drives; the pump is about to look for work"
    PUMPED = "the pump drives"
    YIELDING = "the pump drives and has been asked to stop"
    OFFERED = "the pump has stopped for the thread that asked"


class Life(enum.Enum):
    """Whether the client can be used."""

    __hash__ = object.__hash__

    OPEN = "open"
    CLOSED = "closed"
    FORGOTTEN = "copied into a forked child"


TURN: dict[Turn, dict[str, Turn]] = {
    Turn.ASLEEP: {
        "wake": Turn.AWAKE,
        "rest": Turn.ASLEEP,
        "lead": Turn.LED,
        "withdraw": Turn.ASLEEP,
    },
    Turn.AWAKE: {
        "wake": Turn.AWAKE,
        "rest": Turn.ASLEEP,
        "drive": Turn.PUMPED,
        "lead": Turn.LED_AWAKE,
        "withdraw": Turn.AWAKE,
    },
    Turn.LED: {
        "wake": Turn.LED_AWAKE,
        "rest": Turn.LED,
        "lead": Turn.LED,
        "drive": Turn.PUMPED,
        "leave": Turn.ASLEEP,
        "withdraw": Turn.LED,
    },
    Turn.LED_AWAKE: {
        "wake": Turn.LED_AWAKE,
        "rest": Turn.LED,
        "lead": Turn.LED_AWAKE,
        "drive": Turn.PUMPED,
        "leave": Turn.AWAKE,
        "withdraw": Turn.LED_AWAKE,
    },
    Turn.PUMPED: {
        "wake": Turn.PUMPED,
        "ask": Turn.YIELDING,
        "stop": Turn.AWAKE,
        "withdraw": Turn.PUMPED,
    },
    Turn.YIELDING: {
        "wake": Turn.YIELDING,
        "stop": Turn.OFFERED,
        "withdraw": Turn.PUMPED,
    },
    Turn.OFFERED: {
        "wake": Turn.OFFERED,
        "rest": Turn.ASLEEP,
        "drive": Turn.YIELDING,
        "lead": Turn.LED_AWAKE,
        "withdraw": Turn.AWAKE,
    },
}

LIFE: dict[Life, dict[str, Life]] = {
    Life.OPEN: {"close": Life.CLOSED, "fork": Life.FORGOTTEN},
    Life.CLOSED: {"fork": Life.FORGOTTEN},
    Life.FORGOTTEN: {"fork": Life.FORGOTTEN},
}

_LEADER_DRIVES = frozenset({Turn.LED, Turn.LED_AWAKE})
_PUMP_SLEEPS = frozenset({Turn.ASLEEP, Turn.LED})
_PUMP_WAITS = frozenset({Turn.LED, Turn.LED_AWAKE, Turn.OFFERED})


class Lifecycle:
    """The state of one client. The driver's lock guards every change."""

    def __init__(self) -> None:
        self.life = Life.OPEN
        self.turn = Turn.ASLEEP
        self.followers: set[int] = set()
        """Threads that wait while another drives."""
        self.submitted_at = -math.inf
        """When the last call began."""
        self._left_at = -math.inf

    def live(self, event: str) -> None:
        """Go to the next state of the client: `close` or `fork`."""
        self.life = LIFE[self.life][event]

    def step(self, event: str) -> None:
        """Go to the next state of the socket."""
        self.turn = TURN[self.turn][event]

    def leave(self, now: float) -> None:
        """The leader stops driving."""
        self.step("leave")
        self._left_at = now

    @property
    def is_open(self) -> bool:
        return self.life is Life.OPEN

    @property
    def is_led(self) -> bool:
        return self.turn in _LEADER_DRIVES

    @property
    def pump_sleeps(self) -> bool:
        return self.turn in _PUMP_SLEEPS

    def pause(self, *, unsent: bool, outstanding: bool, now: float) -> float | None:
        """Seconds for which the pump leaves the socket alone: 0 to drive now, None to sleep until it is woken."""
        if unsent:
            return 0.0
        if not outstanding:
            return None
        if self.turn in _PUMP_WAITS:
            return GRACE
        if self.followers:
            return 0.0
        left = self._left_at
        return max(0.0, min(left + GRACE_MOST, max(left, self.submitted_at) + GRACE) - now)
