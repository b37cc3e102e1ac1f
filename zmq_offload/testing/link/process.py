"""A link in a process of its own, started and controlled from Python."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence

from zmq_offload.common.lifetime import made_before_fork, tell_of_forks
from zmq_offload.console.programs import command
from zmq_offload.errors import FailedPrecondition, InvalidArgument
from zmq_offload.testing.link.conditions import Conditions, Outage, check_alone, timetable
from zmq_offload.testing.link.trace import Trace


class Link:
    """An emulated network link to a broker, for as long as the body of `with` lasts.

    The link runs in a process of its own, so that threads of this process do not disturb its timing. In a forked child,
    the parent's link raises FailedPrecondition, and `close` does nothing.

    Parameters
    ----------
    to : str
        Endpoint of the broker, ``"tcp://HOST:PORT"``.
    bandwidth : str, optional
        Bits of payload per second in each direction, such as ``"100Mbit"``. Default: unlimited.
    rtt : str, default "0ms"
        Round-trip time; each direction takes half of it.
    jitter : str, default "0ms"
        Each direction takes longer or shorter by up to half of it. At most `rtt`.
    outages : sequence of Outage, optional
        Times during which the link carries nothing.
    trace : str, optional
        A recorded link in place of `bandwidth`, `rtt` and `outages`: the name of one that comes with the package, such
        as ``"train"``, or a CSV file. It begins when the link does, and again at its end.
    listen : str, default "tcp://127.0.0.1:*"
        Endpoint to listen at; ``*`` is a free port.

    Attributes
    ----------
    endpoint : str
        Endpoint to connect to instead of `to`.

    Raises
    ------
    InvalidArgument
        A quantity has no unit or is out of range, outages overlap, an endpoint is not TCP, or a trace is damaged.
    FailedPrecondition
        The link cannot listen at `listen`, or `to` has an unknown host.

    Examples
    --------
    >>> with Link("tcp://127.0.0.1:5555", bandwidth="100Mbit", rtt="10ms") as link, Client(link.endpoint) as client:
    ...     outputs = client.infer("ocr", {"image": image})
    ...     link.cut()
    """

    def __init__(
        self,
        to: str,
        *,
        bandwidth: str | None = None,
        rtt: str = "0ms",
        jitter: str = "0ms",
        outages: Sequence[Outage] = (),
        trace: str | None = None,
        listen: str = "tcp://127.0.0.1:*",
    ) -> None:
        Conditions.parse(bandwidth, rtt, jitter)
        timetable(outages)
        if trace is not None:
            check_alone(bandwidth, rtt, outages)
            Trace.find(trace)
        arguments = ["--to", to, "--listen", listen, "--rtt", rtt, "--jitter", jitter, "--commands"]
        arguments += [] if bandwidth is None else ["--bandwidth", bandwidth]
        arguments += [] if trace is None else ["--trace", trace]
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

    def cut(self) -> None:
        """Lose all packets until `restore`; connections stay."""
        self._tell("stall")

    def refuse(self) -> None:
        """Reset connections and refuse new ones until `restore`."""
        self._tell("refuse")

    def restore(self) -> None:
        """End an outage. Connections that stayed continue from where they were."""
        self._tell("restore")

    def change(self, *, bandwidth: str | None = None, rtt: str = "0ms", jitter: str = "0ms") -> None:
        """Use other conditions for bytes that are sent from now on.

        Parameters
        ----------
        bandwidth, rtt, jitter : str
            As for `Link`.

        Raises
        ------
        InvalidArgument
            A quantity has no unit or is out of range.
        """
        Conditions.parse(bandwidth, rtt, jitter)
        self._tell(f"change {bandwidth or 'unlimited'} {rtt} {jitter}")

    def close(self) -> None:
        """End the link and its connections. A second `close` does nothing."""
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
        """Let go of the parent's process in a forked child. Another thread of the parent may have held the lock."""
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
        """Read the link's next line. Raises its error if it has ended."""
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._process.stderr.read().strip().rpartition("error: ")[2]
            code = self._process.wait()
            self.close()
            raise (InvalidArgument if code == 2 else FailedPrecondition)(f"the link ended: {said}")
        return line
