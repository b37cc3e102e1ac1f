"""What a client of the gRPC port may use at most. Pure."""

from __future__ import annotations

from dataclasses import dataclass

RATE = 1024
"""Bytes a second that a client sends of a message, or takes of a reply, at least. Modems were faster."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that are options of the gateway.

    `message_bytes` is for a message, before and after decompression, `held_bytes` for all messages at one time,
    `header_bytes` for the metadata of a call. `idle` is the seconds that a connection stays open without a call;
    `receive` those in which a connection is greeted, and within which a message or reply has to make progress.
    """

    message_bytes: int
    held_bytes: int
    header_bytes: int
    connections: int
    streams: int
    idle: float
    receive: float
