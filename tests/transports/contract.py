"""What every transport has to keep. Its tests are a subclass of `Contract`::

    class TestThisTransport(Contract):
        scheme = "grpc"

        @pytest.fixture
        def server(self, gateway: GatewayThread) -> str:  # `gateway` runs for the whole module
            return f"grpc://{gateway.grpc}"

The server has the models of `tests.transports.models`. Without versions (`Abilities.versions`) it has the first
of each.
"""

from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.support.forks import run_in_fork
from tests.support.processes import eventually
from tests.transports.bad_servers import bad_server, closing, dripping, garbage, refused_address, silent
from tests.transports.models import MODELS
from zmq_offload.artifacts.manifest import OffloadedRegion
from zmq_offload.device.offload import Offload
from zmq_offload.device.turns import Turns
from zmq_offload.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OffloadError,
    ProtocolError,
    Unavailable,
)
from zmq_offload.protocol.messages import NO_FITTING_VERSION
from zmq_offload.protocol.tensors import DATATYPES, Latest, signature_of
from zmq_offload.transports.client import ServerClient
from zmq_offload.transports.registry import transport_class
from zmq_offload.transports.transport import Abilities

Array = np.ndarray[Any, Any]

X = np.arange(6, dtype=np.float32).reshape(2, 3)
TWO = np.array([1.5, -2.5], np.float32)
SOON = 5.0
"""Seconds within which what happens at once has happened, on a busy machine."""


class Here:
    """A fallback that returns 3s."""

    def run(self, arrays: Any) -> list[Array]:
        return [np.full(2, 3, np.float32)]


def extremes(datatype: str) -> Array:
    """Values of a datatype that a careless encoding changes."""
    dtype = DATATYPES[datatype]
    if datatype == "BOOL":
        return np.array([[True, False, True], [False, False, True]])
    if dtype.kind in "iu":
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        return np.array([[least, most, 0], [1, most - 1, least + 1]], dtype)
    info = np.finfo(dtype)
    values = [info.max, info.min, info.tiny, info.smallest_subnormal, -0.0, 1 / 3]
    return np.array(values, dtype).reshape(2, 3)


class Contract:
    """The tests of a transport."""

    scheme: ClassVar[str]
    names_outputs: ClassVar[bool] = True
    """Whether a reply says the name and datatype of a single output."""
    large: ClassVar[int] = 300_000
    """Elements of a large tensor: more than one part of a message, in any protocol."""
    both: ClassVar[float] = 1.0
    """Seconds for a call that two servers share, of which the second is connected to anew."""

    @pytest.fixture
    def server(self) -> str:
        """The URL of a server with the models of the contract."""
        raise NotImplementedError

    @pytest.fixture
    def shared(self, server: str) -> Iterator[ServerClient]:
        with ServerClient(server) as client:
            yield client

    @property
    def abilities(self) -> Abilities:
        return transport_class(self.scheme).ABILITIES

    def region(self, name: str, version: int = 1) -> OffloadedRegion:
        return OffloadedRegion("symbol", name, "latest", *MODELS[name][version])

    def offload(self, client: Any, name: str, mode: Any = "always") -> Offload:
        return Offload(client, [self.region(name)], {name: Here()}, Turns(1), mode)

    def signature(self, name: str, version: int = 1) -> Latest:
        return Latest(signature_of(*MODELS[name][version]))

    # --- calls ----------------------------------------------------------------------------------------------

    def test_outputs_come_back_by_name_and_are_the_callers(self, shared: ServerClient) -> None:
        outputs = shared.infer("double", {"x": X})
        assert list(outputs) == ["y"] and outputs.model == "double"
        assert outputs["y"].dtype == np.float32 and outputs["y"].shape == (2, 3)
        np.testing.assert_array_equal(outputs["y"], X * 2)
        outputs["y"][...] = 0  # writable, and no later call sees it
        np.testing.assert_array_equal(shared.infer("double", {"x": X})["y"], X * 2)

    @pytest.mark.parametrize("rows", [0, 1, 7])
    def test_any_extent_goes_and_arrays_may_be_views(self, shared: ServerClient, rows: int) -> None:
        x = np.arange(rows * 3, dtype=">f4").reshape(3, rows).T
        found = shared.infer("double", {"x": x})["y"]
        assert found.shape == (rows, 3)
        np.testing.assert_array_equal(found, x * 2)

    def test_a_scalar_stays_one(self, shared: ServerClient) -> None:
        found = shared.infer("scalar", {"x": np.float32(1.25)})["y"]
        assert found.shape == () and found == 2.5

    def test_all_datatypes_keep_every_bit(self, shared: ServerClient) -> None:
        inputs = {f"in_{name}": extremes(name) for name in DATATYPES}
        outputs = shared.infer("typed", inputs)
        for name, array in inputs.items():
            found = outputs[name.replace("in_", "out_")]
            assert found.dtype == array.dtype and found.tobytes() == array.tobytes(), name

    def test_large_tensors_go(self, shared: ServerClient) -> None:
        x = np.arange(self.large, dtype=np.float32).reshape(-1, 3)
        np.testing.assert_array_equal(shared.infer("double", {"x": x})["y"], x * 2)

    def test_outputs_are_written_in_place(self, shared: ServerClient) -> None:
        place = np.zeros((2, 3), np.float32)
        outputs = shared.infer("double", {"x": X}, outputs={"y": place})
        assert outputs["y"] is place
        np.testing.assert_array_equal(place, X * 2)
        shared.infer("double", {"x": place}, outputs={"y": place})  # an input may be an output, too
        np.testing.assert_array_equal(place, X * 4)
        spread = np.zeros((2, 6), np.float32)[:, ::2]
        shared.infer("double", {"x": X}, outputs={"y": spread})
        np.testing.assert_array_equal(spread, X * 2)

    @pytest.mark.parametrize("wrong", [np.zeros((3, 3), np.float32), np.zeros((2, 3), np.float64)])
    def test_an_output_array_that_does_not_fit_is_refused_and_left_alone(
        self, shared: ServerClient, wrong: Array
    ) -> None:
        with pytest.raises(InvalidArgument, match="output 'y' of model 'double'"):
            shared.infer("double", {"x": X}, outputs={"y": wrong})
        assert not wrong.any()

    def test_submitted_calls_run_together_and_from_many_threads(self, shared: ServerClient) -> None:
        inputs = [np.full((1, 3), number, np.float32) for number in range(40)]
        futures = [shared.submit("double", {"x": x}) for x in inputs]
        for x, future in zip(inputs, futures, strict=True):
            np.testing.assert_array_equal(future.result(20)["y"], x * 2)
        with ThreadPoolExecutor(4) as pool:
            for x, outputs in zip(inputs, pool.map(lambda x: shared.infer("double", {"x": x}), inputs), strict=True):
                np.testing.assert_array_equal(outputs["y"], x * 2)

    # --- versions -------------------------------------------------------------------------------------------

    def test_a_version_is_what_was_asked_for(self, shared: ServerClient) -> None:
        if not self.abilities.versions:
            pytest.skip("this transport has no versions")
        assert shared.infer("double", {"x": X}, version=1).version in (0, 1)
        assert shared.infer("moved", {"x": TWO}, version=1)["y"].shape == (2,)
        assert shared.infer("moved", {"x": np.ones(4, np.float32)})["y"].shape == (4,)
        with pytest.raises(NotFound):
            shared.infer("double", {"x": X}, version=9)

    def test_the_latest_with_a_signature_is_found(self, shared: ServerClient) -> None:
        assert shared.infer("double", {"x": X}, version=self.signature("double"))["y"].shape == (2, 3)
        assert shared.infer("moved", {"x": TWO}, version=self.signature("moved"))["y"].shape == (2,)
        with pytest.raises(FailedPrecondition, match=f"^{NO_FITTING_VERSION} 'double' fits"):
            shared.infer("double", {"x": TWO}, version=self.signature("moved"))

    # --- errors of the server -------------------------------------------------------------------------------

    def test_an_unknown_model_is_not_found(self, shared: ServerClient) -> None:
        for version in (None, self.signature("double")):
            with pytest.raises(NotFound):
                shared.infer("absent", {"x": X}, version=version)

    @pytest.mark.parametrize(
        "inputs",
        [{"w": X}, {"x": X, "w": X}, {"x": X.astype(np.float64)}, {"x": X[0]}, {"x": X[:, :2]}],
        ids=["name", "one too many", "datatype", "rank", "extent"],
    )
    def test_inputs_that_do_not_fit_are_refused(self, shared: ServerClient, inputs: dict[str, Array]) -> None:
        with pytest.raises(InvalidArgument) as caught:
            shared.infer("double", inputs)
        assert not isinstance(caught.value, ProtocolError)
        assert "\n" not in caught.value.message

    def test_a_model_that_fails_says_why(self, shared: ServerClient) -> None:
        with pytest.raises(Internal, match="division by zero"):
            shared.infer("fails", {"x": TWO})

    # --- time, canceling, the end ---------------------------------------------------------------------------

    def test_a_slow_model_does_not_outlive_the_deadline(self, shared: ServerClient) -> None:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="deadline exceeded"):
            shared.infer("slow", {"x": TWO}, timeout=0.2)
        assert 0.15 < time.monotonic() - began < SOON

    def test_a_submitted_call_can_be_canceled(self, server: str) -> None:
        with ServerClient(server) as client:
            future = client.submit("slow", {"x": TWO}, timeout=60)
            assert client._servers.outstanding == 1
            time.sleep(0.05)  # it may be under way or not: both must work
            assert future.cancel()
            with pytest.raises(CancelledError):
                future.result(0)
            eventually(lambda: client._servers.outstanding == 0, SOON)
            np.testing.assert_array_equal(client.infer("double", {"x": X})["y"], X * 2)

    def test_close_ends_what_is_outstanding(self, server: str) -> None:
        client = ServerClient(server)
        errors: list[BaseException] = []

        def call() -> None:
            try:
                client.infer("slow", {"x": TWO}, timeout=60)
            except OffloadError as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        future = client.submit("slow", {"x": TWO}, timeout=60)
        eventually(lambda: client._servers.outstanding == 2)
        client.close()
        client.close()
        thread.join(SOON)
        assert isinstance(errors[0], Cancelled)
        assert isinstance(future.exception(SOON), Cancelled)
        for use in (client.infer, client.submit):
            with pytest.raises(Cancelled, match="the client is closed"):
                use("double", {"x": X})

    def test_a_client_that_is_dropped_warns_and_ends(self, server: str) -> None:
        client = ServerClient(server)
        client.infer("double", {"x": X})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            del client
            gc.collect()
        assert any(str(one.message).startswith("unclosed <ServerClient") for one in caught)

    def test_a_forked_child_needs_its_own_client(self, server: str) -> None:
        with ServerClient(server) as client:
            client.infer("double", {"x": X})
            pending = client.submit("slow", {"x": TWO}, timeout=60)
            said = run_in_fork(lambda: client.infer("double", {"x": X}))
            assert said.startswith("FailedPrecondition: this client was made before a fork")
            assert run_in_fork(pending.result).startswith("FailedPrecondition: this client was made before a fork")
            assert run_in_fork(client.close) == "None"
            np.testing.assert_array_equal(client.infer("double", {"x": X})["y"], X * 2)

    # --- servers that are none ------------------------------------------------------------------------------

    def test_a_server_that_is_not_there_is_unavailable_at_once(self) -> None:
        with ServerClient(f"{self.scheme}://{refused_address()}") as client:
            began = time.monotonic()
            for version in (None, self.signature("double")):
                with pytest.raises(Unavailable):
                    client.infer("double", {"x": X}, version=version, timeout=30)
            assert time.monotonic() - began < SOON

    @pytest.mark.parametrize("misbehave", [silent, dripping, closing, garbage], ids=lambda how: how.__name__)
    def test_a_server_that_is_none_gives_a_typed_error_within_the_deadline(
        self, misbehave: Callable[[Any], None]
    ) -> None:
        with bad_server(misbehave) as address, ServerClient(f"{self.scheme}://{address}") as client:
            began = time.monotonic()
            kinds = (DeadlineExceeded, Unavailable, ProtocolError, Internal)
            with pytest.raises(DeadlineExceeded if misbehave is silent else kinds):
                client.infer("double", {"x": X}, timeout=0.25)
            assert time.monotonic() - began < SOON
            with pytest.raises(kinds):
                client.submit("double", {"x": X}, version=self.signature("double"), timeout=0.25).result(SOON)

    # --- a device's region ----------------------------------------------------------------------------------

    def test_a_region_runs_on_the_server(self, shared: ServerClient) -> None:
        subject = self.offload(shared, "moved")
        version = self.signature("moved")
        assert subject.infer("moved", {"x": TWO}, version=version)["y"].tolist() == [3.0, -5.0]
        assert subject.submit("moved", {"x": TWO}, version=version).result()["y"].tolist() == [3.0, -5.0]

    @pytest.mark.parametrize("name", ["wrong-shape", "wrong-type", "wrong-name"])
    def test_a_server_that_answers_something_else_does_not_fit_the_bundle(
        self, shared: ServerClient, name: str
    ) -> None:
        if not self.names_outputs and name != "wrong-shape":
            pytest.skip("a reply has neither names nor datatypes")
        subject = self.offload(shared, name)
        for outputs in (None, {"y": np.zeros(2, np.float32)}):
            with pytest.raises(FailedPrecondition, match="does not fit this device bundle"):
                subject.infer(name, {"x": TWO}, version=self.signature(name), outputs=outputs)
        subject.set_mode("auto")
        assert subject.infer(name, {"x": TWO}, version=self.signature(name))["y"].tolist() == [3.0, 3.0]

    def test_a_server_with_another_version_of_the_model_does_not_fit_the_bundle(self, shared: ServerClient) -> None:
        region = OffloadedRegion("symbol", "double", "latest", *MODELS["moved"][1])
        subject = Offload(shared, [region], {"double": Here()}, Turns(1))
        version = self.signature("moved")
        with pytest.raises(FailedPrecondition, match="this device bundle was built for one that takes x FP32"):
            subject.infer("double", {"x": TWO}, version=version)
        subject.set_mode("auto")
        assert subject.infer("double", {"x": TWO}, version=version)["y"].tolist() == [3.0, 3.0]

    @pytest.mark.parametrize("misbehave", [silent, closing, garbage], ids=lambda how: how.__name__)
    def test_a_lost_server_falls_back(self, misbehave: Callable[[Any], None]) -> None:
        with bad_server(misbehave) as address, ServerClient(f"{self.scheme}://{address}") as client:
            subject = self.offload(client, "moved", "auto")
            for _ in range(10):  # the first calls are to measure this device
                found = subject.infer("moved", {"x": TWO}, version=self.signature("moved"), timeout=0.2)
                assert found["y"].tolist() == [3.0, 3.0]
                if subject.statistics().fell_back:
                    break
            assert subject.statistics().failed == 0 and subject.statistics().fell_back == 1

    @pytest.mark.parametrize("misbehave", [silent, closing, garbage], ids=lambda how: how.__name__)
    def test_a_second_server_takes_over(self, server: str, misbehave: Callable[[Any], None]) -> None:
        with bad_server(misbehave) as address, ServerClient([f"{self.scheme}://{address}", server]) as client:
            for _ in range(3):
                found = client.infer("moved", {"x": TWO}, version=self.signature("moved"), timeout=self.both)
                assert found["y"].tolist() == [3.0, -5.0]
