"""Several broker processes on one host: starts them, restarts one that ends, and stops all.

The processes do not know of each other. Each has ports of its own, which it keeps over a restart, so that its clients
and workers find it again.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Sequence

from broker.config import Config
from broker.places import Place
from zmq_offload.common.seats import Seats
from zmq_offload.common.units import counted
from zmq_offload.console import programs
from zmq_offload.console.settings import NONE
from zmq_offload.console.supervision import Supervision

log = logging.getLogger("broker.supervisor")

SEAT = "ZMQ_OFFLOAD_BROKER_SEAT"
"""Variable for a child: its number, how many had that before, and the descriptor of its lifeline:
NUMBER,RESTARTS,FD."""

_READY = re.compile(r"ready frontend=(\S+) backend=(\S+)(?: metrics=(\S+))?")

_MARGIN = 5.0
"""Seconds after the grace in which a process that was stopped has to end. One that hangs is killed then."""


class Supervisor(Supervision):
    """Keeps a broker process running at each of the places, with the same arguments otherwise.

    A process that ends before it was ever ready cannot serve there: then all are stopped, and `run` returns 1.
    """

    def __init__(self, config: Config, arguments: Sequence[str]) -> None:
        count = len(config.places)
        super().__init__("broker", Seats(count, must_be_ready=True, patience=config.grace + _MARGIN), log)
        self._command = [*programs.command(), "broker", *arguments]
        self._places = list(config.places)
        self._ready: set[int] = set()
        log.info("%s", counted(count, "process", "es"))

    def _launch(self, at: int, starts: int, lifeline: int) -> subprocess.Popen[bytes]:
        where = [f"--{name}={endpoint}" for name, endpoint in self._places[at]._asdict().items()]
        return subprocess.Popen(
            [*self._command, "--processes=1", *where],
            env=os.environ | {SEAT: f"{at},{starts},{lifeline}"},
            stdout=subprocess.PIPE,
            pass_fds=[lifeline],
            start_new_session=True,
        )

    def _heard(self, at: int, line: str) -> None:
        if (ready := _READY.fullmatch(line)) is None:
            return
        # Restarted, it listens at the same ports, also those that the system chose.
        self._places[at] = Place(ready[1], ready[2], ready[3] or NONE)
        self._seats.ready(at)
        told = len(self._ready) == len(self._places)
        self._ready.add(at)
        if not told and len(self._ready) == len(self._places):
            self._tell()

    def _tell(self) -> None:
        """A program that starts brokers with port 0 reads all ports here, once each of them has listened."""
        metrics = [place.metrics for place in self._places if place.metrics != NONE]
        where = f" metrics={','.join(metrics)}" if metrics else ""
        fronts, backs = (",".join(each) for each in zip(*(place[:2] for place in self._places), strict=True))
        print(f"ready frontend={fronts} backend={backs}{where}", flush=True)
