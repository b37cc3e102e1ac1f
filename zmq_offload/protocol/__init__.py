"""The wire protocol: messages to frames and back. docs/protocol.md is the specification.

The room has no sockets. Frames that are not valid raise ProtocolError.
"""
