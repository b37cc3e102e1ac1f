"""Frames <-> messages. No sockets here, and no error but ProtocolError (docs/protocol.md is the specification)."""
