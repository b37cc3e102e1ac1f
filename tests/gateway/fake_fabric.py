"""The fabric without a broker: the protocols' decisions are tested on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zmq_offload.client.results import Timings
from zmq_offload.errors import OffloadError
from zmq_offload.gateway.calls import Call, Cancel, Ended, Outputs, tell
from zmq_offload.gateway.catalog import Catalog, Indexed, Model
from zmq_offload.gateway.control import ModelControl
from zmq_offload.gateway.statistics import Statistics
from zmq_offload.net.grants import Grant
from zmq_offload.protocol.packed import pack
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import TensorSpec

ALL = Grant("test")


def model(name: str, *inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (), version: int = 1) -> Model:
    """A model whose only version is `version`."""
    return Model(name, version, inputs, outputs, workers=1, latest=True)


class FakeFabric:
    """Serves models that echo their inputs. All that happens is in `calls` and `canceled`.

    `run` has the outputs of a call in place of its inputs, or the error. With `hold`, nothing ends before `release`.
    Models can be unloaded if `control` says so.
    """

    def __init__(self, *models: Model, run: Callable[[Call], Mapping[str, Array] | OffloadError] | None = None) -> None:
        self.catalog: Catalog | OffloadError = Catalog(models)
        self.run = run or (lambda call: call.inputs)
        self.hold = False
        self.statistics = Statistics()
        self.stopping = False
        self.control = ModelControl(True)
        self.calls: list[Call] = []
        self.canceled = 0
        self._waiting: list[Callable[[], None]] = []

    def infer(self, call: Call, grant: Grant, ended: Ended) -> Cancel:
        self.calls.append(call)
        return self._later(lambda: tell(ended, self._outputs(call)))

    def models(
        self,
        grant: Grant,
        ended: Callable[[Catalog | OffloadError], None],
        name: str | None = None,
        version: int | None = None,
    ) -> Cancel:
        known = self.catalog
        seen = known.seen(grant.allows, self.control.closed) if isinstance(known, Catalog) else known
        return self._later(lambda: tell(ended, seen))

    def index(self, grant: Grant, ended: Callable[[list[Indexed] | OffloadError], None]) -> Cancel:
        return self.models(grant, lambda seen: ended(seen.indexed() if isinstance(seen, Catalog) else seen))

    def load(self, name: str, grant: Grant, ended: Callable[[OffloadError | None], None]) -> Cancel:
        return self._later(lambda: ended(self.control.refusal() or self._change(name, self.control.load)))

    def unload(self, name: str, grant: Grant, ended: Callable[[OffloadError | None], None]) -> Cancel:
        return self._later(lambda: ended(self.control.refusal() or self._change(name, self.control.unload)))

    def _change(self, name: str, change: Callable[[str, Catalog], OffloadError | None]) -> OffloadError | None:
        return change(name, self.catalog) if isinstance(self.catalog, Catalog) else self.catalog

    def release(self) -> None:
        """End what waits."""
        waiting, self._waiting = self._waiting, []
        for end in waiting:
            end()

    def _outputs(self, call: Call) -> Outputs | OffloadError:
        outputs = self.run(call)
        if isinstance(outputs, OffloadError):
            return outputs
        return Outputs(pack(outputs), call.model, call.version or 1, Timings(0.001, 0.002, 0.004, 0.005))

    def _later(self, end: Callable[[], None]) -> Cancel:
        if not self.hold:
            end()
            return lambda: None
        self._waiting.append(end)

        def cancel() -> None:
            if end in self._waiting:
                self._waiting.remove(end)
                self.canceled += 1

        return cancel
