"""The synchronous client: what a program calls, and its arguments. `zmq_offload.client.driver` does the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from zmq_offload.client.arguments import check_timeout
from zmq_offload.client.calls import Call, Submitted
from zmq_offload.client.connection import DEFAULT_TIMEOUT, Connection, answer_of, outputs_of
from zmq_offload.client.driver import Driver
from zmq_offload.client.places import Signatures, check_places, fill
from zmq_offload.client.results import Outputs
from zmq_offload.client.session import RetryPolicy
from zmq_offload.common.lifetime import hold, refuse_pickling, shown, warn_unclosed
from zmq_offload.errors import InvalidArgument, Unavailable
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest


class Client:
    """Calls models through a broker; safe to share between threads, not between processes.

    Close it, or use it in a `with` statement. One that is dropped gives a ResourceWarning and disconnects when what was
    submitted has ended. In a forked child the parent's raises FailedPrecondition; make another there.

    `broker` is the endpoint of a broker's frontend, or several: while one does not answer, the next is tried, and what
    was outstanding is sent there. `timeout` (seconds) is for calls that give none: no call waits for ever.
    An input or output of more than `max_frame_bytes` is refused; the broker and the workers have limits, too.
    `key` (this client's NAME.key_secret) and `broker_key` (the broker's NAME.key) encrypt and authenticate
    (docs/security.md); their defaults are in ZMQ_OFFLOAD_CLIENT_KEY and ZMQ_OFFLOAD_BROKER_KEY.
    """

    def __init__(
        self,
        broker: str | Sequence[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        max_frame_bytes: int = limits.MESSAGE_BYTES,
        policy: RetryPolicy | None = None,
        key: str | None = None,
        broker_key: str | None = None,
    ) -> None:
        self._timeout = check_timeout(timeout)
        self._connection = Connection(broker, policy, max_frame_bytes, key, broker_key)
        self._session = self._connection.session
        try:
            self._driver = Driver(self._connection)
        except BaseException:
            self._connection.close()
            raise
        self._signatures = Signatures()
        self._release = hold(self, self._driver)
        self._warns = True

    # --- the face -------------------------------------------------------------------------------------------

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | Latest | None = None,
        timeout: float | None = None,
        priority: int = 0,
        outputs: Mapping[str, Array] | None = None,
    ) -> Outputs:
        """Run `model` on named arrays and return its named outputs.

        `version` None is the latest that is served (docs/operations.md says when a new one becomes that), a
        `zmq_offload.Latest(signature)` the latest with that signature. `timeout` is in seconds. Requests of a higher
        `priority` (-100 to 100) leave the broker's queue first. `outputs`: arrays that the results are put into (and
        that are returned), by name, of the model's shapes and datatypes; they may be inputs, too. What is known not to
        fit is refused before the model runs: where an earlier answer was different, the broker is asked what the model
        returns now. The input arrays must not change before this returns.

        Raises the errors of `zmq_offload.errors`; docs/errors.md says when each comes and what to do.
        """
        self._driver.refuse_callback("infer")
        timeout = self._timeout if timeout is None else timeout
        arguments = self._connection.request(model, inputs, version, timeout, priority)
        if outputs is not None:
            check_places(outputs)
            self._check_fit(model, version, outputs, timeout)
        call: Call[Outputs] = Call(outputs_of, model)
        self._driver.begin(call, self._session.request, *arguments)
        self._driver.run(call)
        result = call.result()
        if outputs is not None:
            self._signatures.answered(result, version)
            fill(result, outputs)
        return result

    def submit(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | Latest | None = None,
        timeout: float | None = None,
        priority: int = 0,
    ) -> Future[Outputs]:
        """As `infer`, but return a future at once. The input arrays must not change before it is done. Cancelling the
        future takes the request back, out of the broker's queue if it is still there."""
        timeout = self._timeout if timeout is None else timeout
        arguments = self._connection.request(model, inputs, version, timeout, priority)
        call: Submitted[Outputs] = Submitted(self._driver, outputs_of, model)
        self._driver.begin(call, self._session.request, *arguments)
        call.future.number = call.number
        try:
            self._driver.send()
        except Unavailable:
            call.future.cancel()
            raise
        return call.future

    def models(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """What is served now: for each model and version its `name`, `version`, `inputs`, `outputs` (name, datatype,
        shape; -1 for any extent) and the number of `workers` that hold it."""
        return self._query("models", timeout)  # type: ignore[no-any-return]

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The broker's state: its workers, models, queues, and the requests served and failed (docs/operations.md)."""
        return self._query("status", timeout)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Take back what is outstanding (those calls raise Cancelled) and disconnect. Closing again does nothing, nor
        does closing the parent's in a forked child."""
        self._warns = False
        self._driver.refuse_callback("close")
        self._driver.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_warns", False) and not self._driver.forgotten:
            warn_unclosed(self, self._release)

    def belongs_to_another(self) -> None:
        """It is closed with what holds it, which gives the warning for both."""
        self._warns = False

    def __repr__(self) -> str:
        driver, endpoints = self._driver, self._connection.endpoints
        return shown(self, endpoints, driver.outstanding, closed=driver.closed, forgotten=driver.forgotten)

    def __reduce__(self) -> Any:
        raise refuse_pickling("a Client")

    # --- calls ----------------------------------------------------------------------------------------------

    def _check_fit(
        self, model: str, version: int | Latest | None, outputs: Mapping[str, Array], timeout: float
    ) -> None:
        """Raises InvalidArgument for arrays that the outputs are known not to fit."""
        if self._signatures.complaint(model, version, outputs) is not None:
            self._signatures.announced(self.models(timeout=timeout))
            if (why := self._signatures.complaint(model, version, outputs)) is not None:
                raise InvalidArgument(why)

    def _query(self, what: str, timeout: float | None) -> Any:
        self._driver.refuse_callback(what)
        timeout = self._timeout if timeout is None else check_timeout(timeout)
        call: Call[Any] = Call(answer_of)
        self._driver.begin(call, self._session.query, what, timeout)
        self._driver.run(call)
        return call.result()
