"""The bounds of the protocol. A message that exceeds one raises ProtocolError. A frame is refused by its size
before it is decoded, so that a decoder allocates in proportion to these bounds."""

from __future__ import annotations

ENVELOPE_BYTES = 8 * 1024
"""An envelope. The largest valid one is an Error with a long text."""

HEADER_BYTES = 256 * 1024
"""The header of a request or result."""

PACKED_BYTES = 4 * 1024
"""A tensor of at most this many bytes is packed into the frame of the header."""

BODY_BYTES = 4 * 1024 * 1024
"""The second frame of an Announce or an Answer: model descriptions, statistics."""

BODY_ITEMS = 8 * 1024
"""Items of one array or map in a body. msgpack allocates an array before it reads the items, so that a few nested array
headers could otherwise ask for gigabytes."""

TENSORS = 256
"""Tensors in one message."""

RANK = 16
"""Dimensions of one tensor."""

NAME_BYTES = 512
"""A tensor's name, in UTF-8. ONNX exporters use module paths as names, which are long."""

EXTENT = 2**40
"""Every extent of a shape is below this."""

VERSION = 2**31 - 1
"""The highest version number of a model."""

MODEL_NAME_BYTES = 128
"""A model's name, in UTF-8."""

MESSAGE_CHARS = 1500
"""The text of an error. A longer one is cut before it is sent."""

PRIORITY = 100
"""Priorities go from -PRIORITY to PRIORITY. A higher one is more urgent; 0 is the default."""

PING_IDS = 512
"""Requests that one Ping asks about. An id has at most 9 bytes, so that a Ping fits in an envelope."""

FRAMES = TENSORS + 2
"""Frames of one message: envelope, header, tensors."""

BUDGET_US = 24 * 3600 * 1_000_000
"""The longest time budget of a request, in microseconds: a day."""

MESSAGE_BYTES = 256 * 1024 * 1024
"""The default of `--max-frame-bytes`: the largest frame that a peer takes."""

ARENA_BYTES = 512 * 1024 * 1024
"""The default of `--arena-bytes`: memory of a process for tensors that others on its host read."""

UNASKED_BYTES = BODY_BYTES
"""The longest frame that may be sent to a peer whose limit is not known. A peer with a smaller limit answers with an
error. A longer frame may end the connection (see `zmq_offload.net.transport.make_socket`)."""
