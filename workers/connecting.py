"""Which connections a worker has to its brokers: sockets of its own, or libzmq's for keys."""

from __future__ import annotations

from workers.config import Config
from workers.keyedlinks import KeyedLinks
from workers.links import Links
from workers.streamlinks import StreamLinks
from zmq_offload.net.handshake import Security
from zmq_offload.net.sharedmemory.sharing import Sharing


def connections(config: Config, sharing: Sharing | None = None) -> Links:
    """The connections of a worker to its brokers."""
    # A broker sends Probes, and attempts for free slots. Beyond this limit, messages stay in its memory.
    most_messages = 1000 + 4 * config.slots
    security = Security(config.key, config.broker_key)
    if security.has_keys:
        return KeyedLinks(
            config.brokers,
            security,
            heartbeat=config.policy.heartbeat,
            most_messages=most_messages,
            max_frame_bytes=config.max_frame_bytes,
        )
    return StreamLinks(
        config.brokers,
        heartbeat=config.policy.heartbeat,
        most_messages=most_messages,
        max_frame_bytes=config.max_frame_bytes,
        sharing=sharing,
    )
