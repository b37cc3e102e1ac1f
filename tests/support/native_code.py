"""Runs tests twice: with the compiled code of `zmq_offload.native`, and with what Python does in its place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from zmq_offload import native
from zmq_offload.net import frames, zmtp
from zmq_offload.protocol import messages


@pytest.fixture(scope="module", params=["compiled", "python"])
def compiled_or_not(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of a module: hypothesis wants no fixture of a single test."""
    if request.param == "compiled":
        if native.wire is None:
            pytest.skip("zmq_offload.native.wire is not built: there was no C compiler, or ZMQ_OFFLOAD_NATIVE is 0")
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zmtp, "split", frames._split)
        patch.setattr(frames, "append", frames._append)
        patch.setattr(messages, "_decode_usual", messages._unusual)
        patch.setattr(messages, "_encode_usual", messages._unusual)
        yield
