"""Every bound of the protocol, in one place. What exceeds one is a ProtocolError, never an allocation."""

from __future__ import annotations

ENVELOPE_BYTES = 8 * 1024
"""An envelope; the largest honest one is an Error with a long message."""

HEADER_BYTES = 256 * 1024
"""The header of a request or result."""

PACKED_BYTES = 4 * 1024
"""A tensor of at most so many bytes is in the frame of the header."""

BODY_BYTES = 4 * 1024 * 1024
"""The second frame of an Announce or an Answer: model descriptions, statistics."""

BODY_ITEMS = 8 * 1024
"""Items of one array or map in a body. msgpack makes an array of the length that is announced before it reads the
items, so that a few nested headers could otherwise ask for gigabytes."""

TENSORS = 256
"""Tensors in one message."""

RANK = 16
"""Dimensions of one tensor."""

NAME_BYTES = 512
"""A tensor's name, in UTF-8. ONNX exporters write paths of modules as names."""

EXTENT = 2**40
"""One extent of a shape is below this."""

VERSION = 2**31 - 1
"""The highest version number of a model."""

MODEL_NAME_BYTES = 128
"""A model's name, in UTF-8."""

MESSAGE_CHARS = 1500
"""The text of an error; a longer one is cut when it is sent."""

PRIORITY = 100
"""Priorities go from -PRIORITY to PRIORITY; more is more urgent, 0 is the default."""

PING_IDS = 512
"""Requests that one Ping asks about; with 9 bytes an id it stays well inside an envelope."""

FRAMES = TENSORS + 2
"""Frames of one message: envelope, header, tensors."""

BUDGET_US = 24 * 3600 * 1_000_000
"""The longest time budget of a request, in microseconds: a day."""

MESSAGE_BYTES = 256 * 1024 * 1024
"""One frame, by default (`--max-frame-bytes`)."""

UNASKED_BYTES = BODY_BYTES
"""A frame of at most this many bytes may be sent to a peer whose limit is not known. What exceeds the receiver's
limit is answered with an error; a longer frame may end the connection (see `zmq_offload.net.transport.make_socket`)."""
