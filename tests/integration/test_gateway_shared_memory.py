"""Tensors in system shared memory, with the clients of Triton and a real gateway."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, shared_memory

from tests.support.fabrics import gateway_of_signed_models
from tests.support.processes import Gateway

X = np.arange(6, dtype=np.float32).reshape(2, 3)
IN, OUT = X.nbytes, 64
"""Bytes of the input, and where the output begins behind it."""

KINDS: dict[str, ModuleType] = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with gateway_of_signed_models("--system-shared-memory") as gateway:
        yield gateway


class User:
    """A client with a file of shared memory: the input is at its begin, and there is room for the output at OUT."""

    def __init__(self, kind: str, gateway: Gateway) -> None:
        self.module = KINDS[kind]
        self.client: Any = self.module.InferenceServerClient(getattr(gateway, kind))
        self.key = f"/zo-test-{uuid.uuid4().hex}"
        self.memory = shared_memory.create_shared_memory_region("mine", self.key, 2 * OUT)
        shared_memory.set_shared_memory_region(self.memory, [X])

    def close(self) -> None:
        self.client.unregister_system_shared_memory()
        self.client.close()
        shared_memory.destroy_shared_memory_region(self.memory)

    def infer(self, region: str = "mine", size: int = IN, room: int = IN) -> Any:
        """Run "identity" from shared memory into shared memory."""
        given = self.module.InferInput("x", [2, 3], "FP32")
        given.set_shared_memory(region, size)
        wanted = self.module.InferRequestedOutput("y")
        wanted.set_shared_memory(region, room, OUT)
        return self.client.infer("identity", [given], outputs=[wanted])

    def output(self) -> Any:
        return shared_memory.get_contents_as_numpy(self.memory, np.float32, [2, 3], OUT)

    def regions(self) -> list[dict[str, Any]]:
        """The status as HTTP has it."""
        if self.module is tritonclient.http:
            found: list[dict[str, Any]] = self.client.get_system_shared_memory_status()
            return found
        regions = self.client.get_system_shared_memory_status(as_json=True).get("regions", {}).values()
        return [
            {**region, "offset": int(region.get("offset", 0)), "byte_size": int(region["byte_size"])}
            for region in regions
        ]


@pytest.fixture(params=list(KINDS))
def user(request: pytest.FixtureRequest, gateway: Gateway) -> Iterator[User]:
    user = User(request.param, gateway)
    yield user
    user.close()


def test_a_model_runs_from_shared_memory_into_shared_memory(user: User) -> None:
    user.client.register_system_shared_memory("mine", user.key, 2 * OUT)
    assert user.regions() == [{"name": "mine", "key": user.key, "offset": 0, "byte_size": 2 * OUT}]
    result = user.infer()
    np.testing.assert_array_equal(user.output(), X)
    output = result.get_output("y")
    assert list(output["shape"] if isinstance(output, dict) else output.shape) == [2, 3]
    user.client.unregister_system_shared_memory("mine")
    assert user.regions() == []
    with pytest.raises(InferenceServerException, match="'mine' is not registered"):
        user.infer()


def test_wrong_uses_are_refused_and_say_why(user: User) -> None:
    def refused(said: str) -> Any:
        return pytest.raises(InferenceServerException, match=said)

    for key in ("/../../etc/passwd", "/missing-zo", "/a/b"):
        with refused(r"is not a name as for shm_open|cannot be opened"):
            user.client.register_system_shared_memory("mine", key, 8)
    with refused("which has 128 bytes"):
        user.client.register_system_shared_memory("mine", user.key, 2 * OUT + 1)
    user.client.register_system_shared_memory("mine", user.key, 2 * OUT)
    with refused("is registered; unregister it before"):
        user.client.register_system_shared_memory("mine", user.key, 2 * OUT)
    with refused("are not inside of shared memory region"):
        user.infer(room=OUT + 4)
    with refused(r"has 24 bytes, and its place .* has 20"):
        user.infer(room=20)
    with refused("'other' is not registered"):
        user.client.get_system_shared_memory_status("other")


def test_a_file_that_becomes_shorter_ends_the_request_and_not_the_gateway(user: User) -> None:
    user.client.register_system_shared_memory("mine", user.key, 2 * OUT)
    os.truncate(f"/dev/shm{user.key}", OUT + 4)
    with pytest.raises(InferenceServerException, match="it became shorter since it was registered"):
        user.infer()
    os.truncate(f"/dev/shm{user.key}", 0)
    with pytest.raises(InferenceServerException, match="it became shorter since it was registered"):
        user.infer()
    assert user.client.is_server_live()
    os.truncate(f"/dev/shm{user.key}", 2 * OUT)  # for the memory that this test has mapped
