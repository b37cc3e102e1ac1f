"""Submitted calls of a client: futures whose `cancel` reaches the server."""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError

from zmq_offload.client.results import Outputs
from zmq_offload.common.future_internals import fail_in_child
from zmq_offload.common.lifetime import made_before_fork
from zmq_offload.transports.transport import Cancellation


class ServerFuture(Future[Outputs]):
    """The future of a call. The call runs on a thread of the crew."""

    def __init__(self, cancellation: Cancellation) -> None:
        super().__init__()
        self._cancellation = cancellation

    def cancel(self) -> bool:
        """Cancel the call, unless it is done."""
        canceled = super().cancel()
        if canceled:
            self._cancellation.cancel()
        return canceled

    def end(self, outcome: Outputs | BaseException) -> None:
        """Set the result or the exception, unless the future is canceled."""
        try:
            if isinstance(outcome, BaseException):
                self.set_exception(outcome)
            else:
                self.set_result(outcome)
        except InvalidStateError:  # it was canceled; `futures.wait` learns of it now
            self.set_running_or_notify_cancel()

    def forget(self) -> None:
        """Fail in a forked child: the thread that runs the call is the parent's."""
        fail_in_child(self, made_before_fork("client"))
