"""A fabric in front of another passes on what it does not do itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.gateway.fake_fabric import ALL, FakeFabric, model
from zmq_offload.gateway.calls import Call
from zmq_offload.gateway.front import Front
from zmq_offload.protocol.packed import pack
from zmq_offload.protocol.tensors import TensorSpec


def test_everything_is_passed_on() -> None:
    fabric = FakeFabric(model("m", TensorSpec("x", "FP32", (1,))))
    front = Front(fabric)
    ended: list[Any] = []
    front.infer(Call("m", None, pack({"x": np.ones(1, np.float32)})), ALL, ended.append)
    front.models(ALL, ended.append, "m", 1)
    front.index(ALL, ended.append)
    front.unload("m", ALL, ended.append)
    front.load("m", ALL, ended.append)
    outputs, catalog, index, unloaded, loaded = ended
    assert (outputs.model, catalog.models[0].name, index[0].name) == ("m", "m", "m")
    assert (unloaded, loaded) == (None, None)
    assert front.statistics is fabric.statistics
    assert not front.stopping
    fabric.stopping = True
    assert front.stopping
