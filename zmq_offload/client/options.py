"""The keyword arguments of a call, as types: what anything that offers `infer` or `submit` accepts.

`Client.infer`, `Client.submit` and `AsyncClient.infer` spell their parameters out, because `help()` and several editors
do not expand a `TypedDict`. All others take `**options: Unpack[...]` of a type below. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import Latest


class SubmitOptions(TypedDict, total=False):
    """Options of `submit`; each may be left out."""

    version: int | Latest | None
    label: str | None
    timeout: float | None


class InferOptions(SubmitOptions, total=False):
    """Options of `infer`; `outputs` are arrays that receive the results."""

    outputs: Mapping[str, Array] | None
