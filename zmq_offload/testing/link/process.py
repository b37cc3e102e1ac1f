"""A link as a program of its own, to be started and told from Python."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence

from zmq_offload.common.lifetime import made_before_fork, tell_of_forks
from zmq_offload.console.programs import command
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.testing.link.conditions import Conditions, Outage, timetable


class Link:
    """An emulated link to a broker, for as long as the body of `with` lasts::

        with Link("tcp://127.0.0.1:5555", bandwidth="100Mbit", rtt="10ms") as link, Client(link.endpoint) as client:
            client.infer(...)

    `bandwidth` is each way's own, None without a bound. `rtt` is divided equally; `jitter` makes it longer or shorter
    by up to so much. It runs in a process of its own, whose timing this one's threads do not disturb. In a forked
    child, the parent's link refuses, and `close` does nothing.

    Raises InvalidArgument for quantities without a unit or conditions that cannot be, FailedPrecondition if it cannot
    listen at `listen`.
    """

    def __init__(
        self,
        to: str,
        *,
        bandwidth: str | None = None,
        rtt: str = "0ms",
        jitter: str = "0ms",
        outages: Sequence[Outage] = (),
        listen: str = "tcp://127.0.0.1:*",
    ) -> None:
        Conditions.parse(bandwidth, rtt, jitter)
        timetable(outages)
        arguments = ["--to", to, "--listen", listen, "--rtt", rtt, "--jitter", jitter, "--commands"]
        arguments += [] if bandwidth is None else ["--bandwidth", bandwidth]
        for outage in outages:
            arguments += ["--outage", f"{outage.start!r}:{outage.seconds!r}:{outage.kind}"]
        self._lock = threading.Lock()
        self._forgotten = False
        tell_of_forks(self)
        self._process = subprocess.Popen(
            [*command(), "link", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.endpoint = self._answer().split()[0]
        """Where to connect instead of `to`."""

    def cut(self) -> None:
        """Packets vanish: connections stay, and nothing gets through until `restore`."""
        self._tell("stall")

    def refuse(self) -> None:
        """Connections are reset and new ones refused until `restore`."""
        self._tell("refuse")

    def restore(self) -> None:
        """The end of an outage. What waited goes on from where it was."""
        self._tell("restore")

    def change(self, *, bandwidth: str | None = None, rtt: str = "0ms", jitter: str = "0ms") -> None:
        """Other conditions for what is sent from now on."""
        Conditions.parse(bandwidth, rtt, jitter)
        self._tell(f"change {bandwidth or 'unlimited'} {rtt} {jitter}")

    def close(self) -> None:
        """The end of it, and of all connections by it. Closing again does nothing."""
        if self._forgotten:
            return
        with self._lock:
            if self._process.poll() is None:
                self._process.communicate()  # which closes its standard input
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                assert pipe is not None
                pipe.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forget(self) -> None:
        """This process was forked: the link's process is the parent's child, and a thread of the parent's that is not
        here may have held the lock."""
        self._forgotten = True
        self._lock = threading.Lock()

    def _tell(self, command: str) -> None:
        if self._forgotten:
            raise made_before_fork("link")
        with self._lock:
            assert self._process.stdin is not None
            if self._process.poll() is not None:
                raise FailedPrecondition("the link is closed")
            self._process.stdin.write(f"{command}\n")
            self._answer()

    def _answer(self) -> str:
        """Its next line; raises what it ended with if there is none."""
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._process.stderr.read().strip().rpartition("error: ")[2]
            code = self._process.wait()
            self.close()
            raise (InvalidArgument if code == 2 else FailedPrecondition)(f"the link ended: {said}")
        return line
