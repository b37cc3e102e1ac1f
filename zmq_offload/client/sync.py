"""The synchronous client, as programs see it. `zmq_offload.client.driver` moves its messages."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NoReturn

from zmq_offload.client.arguments import check_arena_bytes, check_timeout
from zmq_offload.client.calls import Call, Submitted
from zmq_offload.client.connection import connect_to
from zmq_offload.client.driver import Driver
from zmq_offload.client.link import DEFAULT_TIMEOUT, answer_of, outputs_of, views_of
from zmq_offload.client.output_arrays import Signatures, check_output_arrays, fill
from zmq_offload.client.prepared import Prepared
from zmq_offload.client.results import Outputs
from zmq_offload.client.returning import Drivers, in_given_order
from zmq_offload.client.session import RetryPolicy
from zmq_offload.client.streamlink import StreamLink
from zmq_offload.client.tracing import CallSpan, Trace, begin
from zmq_offload.common.lifetime import hold, refuse_pickling, shown, warn_unclosed
from zmq_offload.errors import InvalidArgument, Unavailable
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class Client:
    """Call models through a broker. Threads may share a client; processes may not.

    Close the client, or use it in a `with` statement. A client that is dropped unclosed gives a ResourceWarning, and
    disconnects when its submitted calls have ended. After a fork the child needs a client of its own: the parent's
    raises FailedPrecondition there.

    Parameters
    ----------
    broker : str or sequence of str
        Endpoint of a broker's frontend, such as ``"tcp://edge:5555"`` or ``"ipc:///run/broker"``, or several. Each
        client takes one of several brokers by chance (`RetryPolicy.spread`). While that does not answer, the client
        tries the next one and sends outstanding calls there. It goes back later (`RetryPolicy.come_back`).
    timeout : float, default 10.0
        Seconds for calls that give no timeout of their own. No call waits forever.
    max_frame_bytes : int, default 256 MiB
        Largest input or output in bytes. The broker and the workers have limits of their own.
    policy : RetryPolicy, optional
        Which broker is tried first, and times that decide when a silent one is left for the next one
        (`zmq_offload.client.session.RetryPolicy`).
    key : path, optional
        This client's key pair, a file ``NAME.key_secret``. Default: the variable ``ZMQ_OFFLOAD_CLIENT_KEY``.
    broker_key : path, optional
        The broker's public key, a file ``NAME.key``. Default: the variable ``ZMQ_OFFLOAD_BROKER_KEY``. With both keys
        the connection is encrypted and authenticated (docs/security.md).
    arena_bytes : int, optional
        Memory for inputs of 64 KiB and more that brokers and workers on this host read in place, without keys
        (docs/security.md); all clients of a process with the same value share it, and 0 turns it off. Default: the
        variable ``ZMQ_OFFLOAD_ARENA_BYTES``, or 512 MiB.

    Raises
    ------
    InvalidArgument
        An argument cannot be used, or only one of the two keys is given.
    FailedPrecondition
        A key file cannot be read.
    Unavailable
        The system has no files or sockets left.

    Examples
    --------
    >>> with Client("tcp://edge:5555") as client:
    ...     outputs = client.infer("ocr", {"image": image})
    >>> outputs["text"].shape, outputs.timings.compute
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_frame_bytes: int = limits.MESSAGE_BYTES,
        policy: RetryPolicy | None = None,
        key: str | os.PathLike[str] | None = None,
        broker_key: str | os.PathLike[str] | None = None,
        arena_bytes: int | None = None,
    ) -> None:
        self._timeout = check_timeout(timeout)
        arena_bytes = check_arena_bytes(arena_bytes)
        connect = functools.partial(
            connect_to,
            StreamLink,
            max_frame_bytes=max_frame_bytes,
            key=key,
            broker_key=broker_key,
            arena_bytes=arena_bytes,
        )
        connection = connect(broker, policy)
        try:
            self._drivers = Drivers(connection, functools.partial(connect, policy=in_given_order(connection.policy)))
        except BaseException:
            connection.close()
            raise
        self._signatures = Signatures()
        self._release = hold(self, self._drivers)
        self._warns = True

    # --- public ---------------------------------------------------------------------------------------------

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
        trace: Trace = None,
    ) -> Outputs:
        """Run a model on named arrays and wait for its named outputs.

        Parameters
        ----------
        model : str
            Name of the model.
        inputs : mapping of str to array
            The model's inputs by name, each of the shape and datatype of the model's signature. Arrays must not change
            before the call returns. Anything that `numpy.asarray` accepts will do; an array is sent from its own
            memory, without a copy.
        version : int or Latest, optional
            Version of the model. Default: the latest that is served (docs/operations.md says which that is).
            ``Latest(signature)`` is the latest version with that signature.
        label : str, optional
            Name that stands for a version, as the model's configuration says (docs/operations.md). It goes with no
            version but ``Latest(signature)``, which the labeled version must then have.
        timeout : float, optional
            Seconds until the call fails. Default: the client's.
        priority : int, default 0
            From -100 to 100. Requests of a higher priority leave the broker's queue first.
        outputs : mapping of str to numpy.ndarray, optional
            Arrays that receive the results, by name, of the model's shapes and datatypes. They may be inputs, too. An
            array that is known not to fit is refused before the model runs; to make sure, the client may first ask the
            broker for the model's signature.
        trace : str, True or opentelemetry.trace.SpanContext, optional
            The trace that the call belongs to: a W3C ``traceparent``, True for OpenTelemetry's current span, or a
            SpanContext (docs/traces.md).

        Returns
        -------
        Outputs
            A dict of the output arrays by name, with `model`, `version` and `timings`. Where `outputs` were given,
            it holds those arrays.

        Raises
        ------
        InvalidArgument
            An argument, or an input that does not fit the model's signature. Also for a call from a future's callback.
        NotFound
            No worker serves the model or version, or the model has no such label.
        FailedPrecondition
            The version that the label stands for has another signature than ``Latest(signature)``.
        DeadlineExceeded
            No reply within the timeout.
        Unavailable
            No broker answered, or no worker serves the model now.
        OffloadError
            All other errors of `zmq_offload.errors`; docs/errors.md says when each occurs and what to do.

        Examples
        --------
        >>> outputs = client.infer("ocr", {"image": image}, timeout=0.5)
        >>> text = np.empty((1, 80), np.int64)
        >>> client.infer("ocr", {"image": image}, outputs={"text": text})
        """
        self._drivers.refuse_callback("infer")
        driver = self._drivers.current()
        timeout = self._timeout if timeout is None else timeout
        arguments = driver.connection.request(model, inputs, version, timeout, priority, label)
        if outputs is not None:
            check_output_arrays(outputs)
            self._check_fit(model, version, outputs, timeout)
        call: Call[Outputs] = Call(outputs_of if outputs is None else views_of, model)
        if trace is None:
            self._drivers.begin(call, *arguments).run(call)
            result = call.result()
        else:
            with begin(trace, model) as span:
                self._drivers.begin(call, *arguments, span.trace).run(call)
                result = call.result()
                span.succeeded(result)
        if outputs is not None:
            self._signatures.answered(result, version)
            fill(result, outputs)
        return result

    def submit(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: int | Latest | None = None,
        label: str | None = None,
        timeout: float | None = None,
        priority: int = 0,
        trace: Trace = None,
    ) -> Future[Outputs]:
        """Run a model on named arrays and return a future at once.

        Parameters
        ----------
        model : str
            Name of the model.
        inputs : mapping of str to array
            The model's inputs by name. Arrays must not change before the future is done.
        version : int or Latest, optional
            Version of the model. Default: the latest that is served.
        label : str, optional
            Name that stands for a version, as for `infer`.
        timeout : float, optional
            Seconds until the future fails. Default: the client's.
        priority : int, default 0
            From -100 to 100. Requests of a higher priority leave the broker's queue first.
        trace : str, True or opentelemetry.trace.SpanContext, optional
            The trace that the call belongs to, as for `infer`.

        Returns
        -------
        concurrent.futures.Future of Outputs
            Its `cancel` removes the request from the broker's queue if it is still there. Its callbacks must not wait
            for other calls of this client.

        Raises
        ------
        InvalidArgument
            An argument is wrong; nothing is sent.
        Unavailable
            The client cannot connect, or cannot start a thread to wait for the reply.
        Cancelled
            The client is closed.
        OffloadError
            All other errors, as `infer` raises them, are raised by the future's `result`.

        Examples
        --------
        >>> futures = [client.submit("ocr", {"image": image}) for image in images]
        >>> texts = [future.result()["text"] for future in futures]
        """
        timeout = self._timeout if timeout is None else timeout
        driver = self._drivers.current()
        arguments = driver.connection.request(model, inputs, version, timeout, priority, label)
        call: Submitted[Outputs] = Submitted(driver, outputs_of, model)
        if trace is None:
            driver = self._drivers.begin(call, *arguments)
        else:
            driver = self._begin_traced(call, arguments, begin(trace, model))
        call.future.owner, call.future.number = driver, call.number
        try:
            driver.send()
        except Unavailable:
            call.future.cancel()
            raise
        return call.future

    def models(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """List the models that are served now.

        Parameters
        ----------
        timeout : float, optional
            Seconds until the call fails. Default: the client's.

        Returns
        -------
        list of dict
            For each model and version: `name`, `version`, `inputs` and `outputs` (each a list of dicts with `name`,
            `datatype` and `shape`; an extent of -1 may be any), the number of `workers` that serve it, whether it is
            the `latest`, to which requests without a version go, and the `labels` that stand for it.

        Raises
        ------
        Unavailable
            No broker answered within the timeout.

        Examples
        --------
        >>> [(model["name"], model["version"], model["workers"]) for model in client.models()]
        [('ocr', 3, 4)]
        """
        return self._query("models", timeout)  # type: ignore[no-any-return]

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Describe the broker: its workers, models, queues, and the numbers of requests served and failed.

        Parameters
        ----------
        timeout : float, optional
            Seconds until the call fails. Default: the client's.

        Returns
        -------
        dict
            docs/operations.md explains the keys.

        Raises
        ------
        Unavailable
            No broker answered within the timeout.

        Examples
        --------
        >>> [worker["name"] for worker in client.status()["workers"]]
        """
        return self._query("status", timeout)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Cancel outstanding calls (they raise Cancelled) and disconnect.

        A second `close` does nothing. In a forked child, to close the parent's client does nothing.

        Raises
        ------
        InvalidArgument
            The call comes from a future's callback.
        """
        self._warns = False
        self._drivers.refuse_callback("close")
        self._drivers.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_warns", False) and not self._drivers.forgotten:
            warn_unclosed(self, self._release)

    def belongs_to_another(self) -> None:
        """Leave the warning about an unclosed client to the object that holds this one."""
        self._warns = False

    def prepared(
        self, model: str, *, version: int | Latest | None = None, label: str | None = None, timeout: float | None = None
    ) -> Prepared:
        """Calls of a model with these options, as `infer` takes them, for a caller that copies the outputs itself."""
        return Prepared(self._drivers, model, version, label, self._timeout if timeout is None else timeout)

    def leave(self) -> None:
        """End all calls without waiting for long: the interpreter ends, and a call must not be in TVM then."""
        self._drivers.cut_off()

    def __repr__(self) -> str:
        driver = self._drivers.driver
        return shown(
            self, driver.connection.endpoints, driver.outstanding, closed=driver.closed, forgotten=driver.forgotten
        )

    def __reduce__(self) -> NoReturn:
        raise refuse_pickling("a Client")

    # --- private --------------------------------------------------------------------------------------------

    def _begin_traced(self, call: Submitted[Outputs], arguments: Sequence[object], span: CallSpan) -> Driver:
        """Begin a call whose span ends with its future. Returns its driver."""
        try:
            driver = self._drivers.begin(call, *arguments, span.trace)
        except BaseException as error:
            span.end(error)
            raise
        call.future.add_done_callback(span.done)
        return driver

    def _check_fit(
        self, model: str, version: int | Latest | None, outputs: Mapping[str, Array], timeout: float
    ) -> None:
        """Raise InvalidArgument for arrays that the outputs are known not to fit."""
        if self._signatures.mismatch(model, version, outputs) is not None:
            self._signatures.announced(self.models(timeout=timeout))
            if (why := self._signatures.mismatch(model, version, outputs)) is not None:
                raise InvalidArgument(why)

    def _query(self, kind: str, timeout: float | None) -> Any:
        self._drivers.refuse_callback(kind)
        timeout = self._timeout if timeout is None else check_timeout(timeout)
        call: Call[Any] = Call(answer_of)
        self._drivers.begin(call, kind, timeout, query=True).run(call)
        return call.result()
