"""raw://HOST:PORT: a server that takes the bytes of one tensor and answers those of another.

Such a server cannot say what it takes and returns, so the URL does. A bundle whose region has that signature is used
with it::

    zmq_offload.load("dist/device", server="raw://edge:9000?input=x&output=y&datatype=FP32&shape=1,64")
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import ClassVar

import numpy as np

from zmq_offload.errors import DeadlineExceeded, InvalidArgument, OffloadError, ProtocolError, Unavailable
from zmq_offload.protocol.tensors import TensorSpec, check_tensors, datatype_of
from zmq_offload.transports.transport import Abilities, Attempt, Options, Reply, Request, Served
from zmq_offload.transports.url import Url


class RawTransport:
    """A connection for each call. The output has the datatype and shape of the input."""

    ABILITIES: ClassVar[Abilities] = Abilities(
        cancel=True, priority=False, deadline=False, versions=False, shared=False
    )

    def __init__(self, url: Url, options: Options) -> None:
        self._url = url.only("input", "output", "datatype", "shape")
        try:
            datatype, shape = url.query["datatype"], tuple(map(int, url.query["shape"].split(",")))
            self._x, self._y = (TensorSpec(url.query[key], datatype, shape) for key in ("input", "output"))
        except (KeyError, ValueError):
            raise InvalidArgument(f"{url.shown} needs ?input=NAME&output=NAME&datatype=FP32&shape=1,64") from None

    def infer(self, request: Request, attempt: Attempt) -> Reply:
        """Send the input, and read as many bytes."""
        given = {name: (datatype_of(array.dtype), array.shape) for name, array in request.inputs.items()}
        check_tensors([self._x], given, what=f"model {request.model!r}")
        x = request.inputs[self._x.name]
        y = np.empty_like(x)
        room, at = memoryview(y.reshape(-1).view(np.uint8)), 0
        try:
            place = (self._url.host, self._url.port)
            with socket.create_connection(place, attempt.seconds_to_connect()) as connection:

                def stop() -> None:
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)

                with attempt.stopped_by(stop):  # what cancels the call
                    connection.settimeout(attempt.seconds())
                    connection.sendall(x.tobytes())
                    while at < len(room):
                        connection.settimeout(attempt.seconds())
                        if not (count := connection.recv_into(room[at:])):
                            raise ProtocolError(f"{self._url.shown} answers {at} of {len(room)} bytes")
                        at += count
        except OffloadError:
            raise
        except TimeoutError:
            raise DeadlineExceeded(f"{self._url.shown} does not answer in time") from None
        except OSError as error:
            raise Unavailable(f"{self._url.shown} cannot be reached: {error.strerror}") from None
        return Reply({self._y.name: y}, None)

    def served(self, model: str, attempt: Attempt) -> Iterable[Served]:
        """The one model, whose versions have no numbers."""
        return [Served(None, [self._x], [self._y])]

    def close(self) -> None:
        """Nothing: no connection outlives its call."""

    def forget(self) -> None:
        """The same in a forked child."""
