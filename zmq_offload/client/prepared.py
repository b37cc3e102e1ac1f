"""A call that is made again and again: what does not change is worked out once."""

from __future__ import annotations

from collections.abc import Mapping

from zmq_offload.client.arguments import check_call
from zmq_offload.client.calls import Call
from zmq_offload.client.link import views_of
from zmq_offload.client.results import Outputs
from zmq_offload.client.returning import Drivers
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest


class Prepared:
    """Calls of one model with the same options; `Client.prepared` makes it. Threads may share it."""

    __slots__ = ("_drivers", "_model", "_options")

    def __init__(
        self, drivers: Drivers, model: str, version: int | Latest | None, label: str | None, timeout: float
    ) -> None:
        self._drivers, self._model = drivers, model
        self._options = check_call(model, timeout, version, 0, label)

    def infer(self, inputs: Mapping[str, Array], timeout: float | None = None) -> Outputs:
        """As `Client.infer`, for arrays, and with this timeout if it is less than that of all calls. The outputs are
        views of the reply, for a caller that copies them at once."""
        options = self._options
        if timeout is not None and timeout < options[0]:
            options = (timeout, *options[1:])
        drivers = self._drivers
        driver = drivers.current()
        driver.refuse_callback("infer")
        call: Call[Outputs] = Call(views_of, self._model)
        drivers.begin(call, self._model, driver.connection.payload(inputs), *options).run(call)
        return call.result()
