"""An emulated network link: a TCP relay with bandwidth, delay, jitter and outages.

`path` decides when bytes arrive, `relay` moves them. `trace` reads recorded links. `process` runs a relay from Python,
`zmq-offload link` from the command line. All of it is in user space and needs neither root nor a kernel with netem.
"""

from zmq_offload.testing.link.conditions import Conditions, Outage
from zmq_offload.testing.link.process import Link
from zmq_offload.testing.link.trace import Trace

__all__ = ["Conditions", "Link", "Outage", "Trace"]
