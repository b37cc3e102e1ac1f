"""Bodies that come in chunks. Pure."""

from __future__ import annotations

import httptools

from zmq_offload.errors import one_line
from zmq_offload.gateway.http.heads import END, Refused

_HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class Chunks:
    """Collects a body.

    llhttp, by httptools, parses the chunks. It does not tell where a body ended, but a body ends with an empty line. So
    the parser gets the bytes in pieces that end there, and the end of a body is the end of a piece. There are no
    callbacks for trailers and extensions of chunks, so that these use no memory.
    """

    def __init__(self, limit: int) -> None:
        self.body = bytearray()
        self.complete = False
        self._limit = limit
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_HEAD)

    def feed(self, data: bytearray, start: int, stop: int) -> int:
        """Take bytes of `data`. Returns where the body ends, or `stop` if there may be more of it. Raises Refused."""
        view = memoryview(data)[:stop]
        # The empty line may have begun in bytes that came earlier: the first three bytes are pieces of their own.
        cuts = [start + 1, start + 2, start + 3]
        found = start - 2
        while not self.complete and start < stop:
            if cuts:
                end = min(cuts.pop(0), stop)
            else:
                # Two of them may overlap, so the search goes on inside the last one.
                found = data.find(END, found + 2, stop)
                end = found + 4 if found >= 0 else stop
            self._feed(view[start:end])
            start = end
        return start

    def _feed(self, piece: memoryview) -> None:
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, Refused):
                raise error.__context__ from None
            raise Refused(400, f"the chunks of the body are malformed: {one_line(error).lower()}") from None

    def on_body(self, data: bytes) -> None:
        if len(self.body) + len(data) > self._limit:
            raise Refused(413, f"the body is too long; send at most {self._limit} bytes")
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True
