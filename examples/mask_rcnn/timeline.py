"""When each stage was busy with each item, from what the device measures and what the replies say."""

from __future__ import annotations

from collections.abc import Sequence

from zmq_offload.charts.timeline import Timeline
from zmq_offload.plan.costs import Network, message_bytes
from zmq_offload.plan.slow import Seen

SHOWN = 10
"""Items, from the middle of the run."""


def spans(seen: Seen, network: Network) -> dict[str, tuple[float, float]]:
    """Begin and end of each stage of an item, by the clock of the device.

    The device measures its own stage and the request. Broker and worker report how long they had the request. The
    broker sent the reply as long before it arrived as the reply takes on the network. The uplink is the rest of the
    request, with the wait for it.
    """
    left = seen.received - network.rtt / 2 - network.down_time(message_bytes(seen.answered, answer=True))
    arrived = max(seen.sent, left - seen.timings.broker)
    return {
        "device": (seen.began, seen.ended),
        "uplink": (seen.sent, arrived),
        "server": (left - seen.timings.compute, left),
        "downlink": (left, seen.received),
    }


def timeline(seen: Sequence[Seen], network: Network, title: str) -> Timeline:
    """The chart of some items from the middle of a run, in milliseconds."""
    first = max(0, len(seen) // 2 - SHOWN // 2)
    items = {
        first + at: {stage: (1e3 * begin, 1e3 * end) for stage, (begin, end) in spans(own, network).items()}
        for at, own in enumerate(seen[first : first + SHOWN])
    }
    # Requests are in flight together, and several workers compute at once.
    return Timeline(title, items, ("uplink", "server", "downlink"))
