"""The client of servers that are no brokers of ours. `connect` makes the client that fits a URL."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NoReturn

from zmq_offload.client.arguments import arrays_of, check_call, check_input_bytes, check_max_frame_bytes, check_timeout
from zmq_offload.client.link import DEFAULT_TIMEOUT
from zmq_offload.client.output_arrays import check_output_arrays
from zmq_offload.client.results import Outputs
from zmq_offload.client.sync import Client
from zmq_offload.common.lifetime import hold, refuse_pickling, shown, warn_unclosed
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array, sendable
from zmq_offload.protocol.tensors import Latest
from zmq_offload.transports.registry import BROKERS, check_servers, opened
from zmq_offload.transports.servers import ServerCall, Servers
from zmq_offload.transports.transport import Options, Transport
from zmq_offload.transports.url import scheme_of
from zmq_offload.transports.url import shown as shown_url

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class ServerClient:
    """Call models of any server that there is a transport for. Threads may share a client; processes may not.

    It is used as `zmq_offload.Client` is, and ends as that does. docs/transports.md has what is possible over each
    transport.

    Parameters
    ----------
    server : str or sequence of str
        URL of a server, such as ``"grpc://edge:8001"``, or several for failover, also of different kinds. The first
        is used while it works. A call that fails there because the server is unreachable, unavailable or silent goes to
        the next one, within the same timeout.
    timeout : float, default 10.0
        Seconds for calls that give no timeout of their own. No call waits forever.
    max_frame_bytes : int, default 256 MiB
        Largest input or output in bytes.

    Raises
    ------
    InvalidArgument
        An argument cannot be used; for an unknown scheme, the message lists those that are known.
    FailedPrecondition
        A package that the transport needs is missing.

    Examples
    --------
    >>> with ServerClient(["grpc://edge:8001", "tfs+http://cloud:8501"]) as client:
    ...     outputs = client.infer("ocr", {"image": image})
    """

    def __init__(
        self,
        server: str | Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_frame_bytes: int = limits.MESSAGE_BYTES,
    ) -> None:
        self._timeout = check_timeout(timeout)
        self._max_frame_bytes = check_max_frame_bytes(max_frame_bytes)
        urls = check_servers(server)
        transports: list[Transport] = []
        try:
            for url in urls:
                transports.append(opened(url, Options(self._max_frame_bytes)))  # noqa: PERF401  (closed below)
        except BaseException:
            for transport in transports:
                transport.close()
            raise
        self._servers = Servers([shown_url(url) for url in urls], transports)
        self._release = hold(self, self._servers)
        self._warns = True

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: int | Latest | None = None,
        label: str | None = None,
        timeout: float | None = None,
        priority: int = 0,
        outputs: Mapping[str, Array] | None = None,
    ) -> Outputs:
        """Run a model on named arrays and wait for its named outputs.

        Parameters
        ----------
        model, inputs, version, label, timeout, priority, outputs
            As `zmq_offload.Client.infer` takes them. The priority is ignored where a server knows none. Only brokers
            know labels of calls (docs/transports.md).

        Returns
        -------
        Outputs
            As `zmq_offload.Client.infer` returns them. Of the `timings` only `total` is known; the others are NaN. The
            `version` is 0 if the server did not say which ran.

        Raises
        ------
        InvalidArgument
            An argument, or an input that does not fit the model's signature.
        NotFound
            The server does not serve the model or version.
        Unimplemented
            A label for a server that is no broker.
        DeadlineExceeded
            No reply within the timeout.
        Unavailable
            No server can be reached, or none can run the model now.
        OffloadError
            All other errors of `zmq_offload.errors`.

        Examples
        --------
        >>> outputs = client.infer("ocr", {"image": image}, timeout=0.5)
        """
        if outputs is not None:
            check_output_arrays(outputs)
        return self._servers.run(self._call(model, inputs, version, label, timeout, priority, outputs))

    def submit(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: int | Latest | None = None,
        label: str | None = None,
        timeout: float | None = None,
        priority: int = 0,
    ) -> Future[Outputs]:
        """Run a model on named arrays and return a future at once.

        Parameters
        ----------
        model, inputs, version, label, timeout, priority
            As `zmq_offload.Client.submit` takes them. Arrays must not change before the future is done.

        Returns
        -------
        concurrent.futures.Future of Outputs
            Its `cancel` takes the request back, where the transport can do that.

        Raises
        ------
        InvalidArgument
            An argument is wrong; nothing is sent.
        ResourceExhausted
            256 submitted calls are outstanding.
        Unavailable
            The client cannot start a thread to wait for the reply.
        Cancelled
            The client is closed.
        OffloadError
            All other errors, as `infer` raises them, are raised by the future's `result`.

        Examples
        --------
        >>> futures = [client.submit("ocr", {"image": image}) for image in images]
        """
        return self._servers.submit(self._call(model, inputs, version, label, timeout, priority, None))

    def close(self) -> None:
        """Cancel outstanding calls (they raise Cancelled) and disconnect. A second `close` does nothing."""
        self._warns = False
        self._servers.close()

    def __enter__(self) -> ServerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_warns", False) and not self._servers.forgotten:
            warn_unclosed(self, self._release)

    def belongs_to_another(self) -> None:
        """Leave the warning about an unclosed client to the object that holds this one."""
        self._warns = False

    def leave(self) -> None:
        """End all calls: the interpreter ends, and a call must not be in TVM then."""
        self._servers.leave()

    def __repr__(self) -> str:
        servers = self._servers
        return shown(self, servers.urls, servers.outstanding, closed=servers.closed, forgotten=servers.forgotten)

    def __reduce__(self) -> NoReturn:
        raise refuse_pickling("a ServerClient")

    def _call(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        version: int | Latest | None,
        label: str | None,
        timeout: float | None,
        priority: int,
        outputs: Mapping[str, Array] | None,
    ) -> ServerCall:
        started = time.monotonic()
        seconds, wanted, priority, signature, name = check_call(
            model, self._timeout if timeout is None else timeout, version, priority, label
        )
        arrays = sendable(arrays_of(inputs))
        check_input_bytes(((name, array.nbytes) for name, array in arrays.items()), self._max_frame_bytes)
        until = started + seconds
        return ServerCall(model, wanted or None, signature, arrays, outputs, priority, started, until, name)


def connect(server: str | Sequence[str]) -> Client | ServerClient:
    """Make the client for a server's URL, or for several. The caller closes it.

    Parameters
    ----------
    server : str or sequence of str
        URLs as `ServerClient` takes them. Brokers alone (tcp://, ipc://) get a `zmq_offload.Client`.

    Returns
    -------
    Client or ServerClient

    Raises
    ------
    InvalidArgument
        A URL cannot be used.
    FailedPrecondition
        A package that the transport needs is missing.

    Examples
    --------
    >>> with connect("grpc://edge:8001") as client:
    ...     outputs = client.infer("ocr", {"image": image})
    """
    urls = check_servers(server)
    if all(scheme_of(url) in BROKERS for url in urls):
        return Client(urls)
    return ServerClient(urls)
