"""Calls of gRPC with deadlines, whose messages are bytes."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import grpc

from zmq_offload.errors import ProtocolError, Unavailable
from zmq_offload.transports.access import Tls, access, read
from zmq_offload.transports.codes import of_grpc
from zmq_offload.transports.outputs import LARGEST
from zmq_offload.transports.transport import Attempt
from zmq_offload.transports.url import Url

_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    # The server may be there again soon, and calls in between fail at once: gRPC's own pauses are 1 s to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # With these, Linux ends a connection whose bytes nobody acknowledges for 10 s. After a change of networks, calls
    # would go to a dead one for a quarter of an hour. Most servers refuse pings more often than each 5 minutes.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Channels of one process to one address share a connection otherwise, and its state after a failure.
    ("grpc.use_local_subchannel_pool", 1),
)


class Channel:
    """The connection to one server. `most`: bytes of an answer. Threads share it.

    Raises InvalidArgument and FailedPrecondition for what the URL says of TLS and a token.
    """

    def __init__(self, url: Url, most: int) -> None:
        self._server = f"{url.scheme}://{url.address}"
        options = [*_OPTIONS, ("grpc.max_receive_message_length", min(most, 2**31 - 1))]
        tls, authorization = access(url)
        target = f"dns:///{url.address}"  # otherwise gRPC takes a host named "unix" for a scheme
        if tls is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            self._channel = grpc.secure_channel(target, _credentials(tls), options=options)
        self._metadata = () if authorization is None else (("authorization", authorization),)
        self._methods: dict[str, grpc.UnaryUnaryMultiCallable] = {}
        self._reached = False

    def call(self, method: str, message: bytes, attempt: Attempt) -> bytes:
        """Call a method by its path. Raises the error of the server's status."""
        known = self._methods.get(method)
        if known is None:
            known = self._methods[method] = self._channel.unary_unary(method)
        if not self._reached and attempt.connect_until < attempt.until:
            self._reach(attempt)
        try:
            if attempt.by_close:
                answer: bytes = known(message, timeout=attempt.seconds(), metadata=self._metadata)
            else:
                answer = _stoppable(known, message, attempt, self._metadata)
        except grpc.FutureCancelledError:
            attempt.seconds()  # raises Cancelled
            raise Unavailable(f"the connection to {self._server} was closed") from None
        except grpc.RpcError as error:
            attempt.seconds()
            code = error.code()
            if code is grpc.StatusCode.UNAVAILABLE:
                self._reached = False
            elif code is grpc.StatusCode.CANCELLED:  # not by us: the server or a proxy gave the call up
                code = grpc.StatusCode.UNAVAILABLE
            raise of_grpc(code.name, error.details() or "", self._server) from None
        self._reached = True
        return answer

    def small(self, method: str, message: bytes, attempt: Attempt) -> bytes:
        """The same for an answer without tensors. Raises ProtocolError for a long one."""
        answer = self.call(method, message, attempt)
        if len(answer) > LARGEST:
            name = method.rpartition("/")[2]
            raise ProtocolError(f"the server's answer to {name} has {len(answer)} bytes; at most {LARGEST} are taken")
        return answer

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()

    def _reach(self, attempt: Attempt) -> None:
        """Connect within the time to connect, which is shorter than the call's."""
        ready = threading.Event()

        def follow(state: grpc.ChannelConnectivity) -> None:
            if state is not grpc.ChannelConnectivity.IDLE and state is not grpc.ChannelConnectivity.CONNECTING:
                ready.set()  # a failure is for the call to find

        self._channel.subscribe(follow, try_to_connect=True)
        try:
            with attempt.stopped_by(ready.set):
                if not ready.wait(attempt.seconds_to_connect()):
                    attempt.seconds()
                    raise Unavailable(f"cannot connect to {self._server} in time")
            attempt.seconds()
        finally:
            self._channel.unsubscribe(follow)


def _stoppable(
    method: grpc.UnaryUnaryMultiCallable, message: bytes, attempt: Attempt, metadata: Sequence[tuple[str, str]]
) -> bytes:
    """A call that another thread can stop. gRPC makes such a call in a thread of its own, which takes twice the time
    of a small one."""
    call = method.future(message, timeout=attempt.seconds(), metadata=metadata)
    try:
        with attempt.stopped_by(call.cancel):
            answer: bytes = call.result()
            return answer
    except BaseException:
        call.cancel()
        raise


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    tls.context()  # gRPC says nothing of files that it cannot use, but cannot connect
    files = (tls.ca, tls.key, tls.certificate)
    return grpc.ssl_channel_credentials(*[None if path is None else read(path) for path in files])
