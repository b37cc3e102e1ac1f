"""Versions of other servers' models, and which one a call with a signature goes to. Pure: times are passed in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

from zmq_offload.errors import FailedPrecondition
from zmq_offload.protocol import limits
from zmq_offload.protocol.messages import NO_FITTING_VERSION
from zmq_offload.protocol.tensors import TensorSpec, signature_of
from zmq_offload.transports.transport import Served

FRESH = 30.0
"""Seconds for which a server is not asked again which version fits. A newer one that fits is used after that."""

_SHOWN = 8
"""Versions that a message describes."""


def numbers_of(versions: Iterable[str]) -> list[int]:
    """The versions that have numbers, the latest first."""
    found = {int(version) for version in versions if re.fullmatch("[0-9]{1,10}", version)}
    return sorted((number for number in found if 0 < number <= limits.VERSION), reverse=True)


def number_of(version: str) -> int | None:
    """The version that ran, as an answer names it; None if it has no number."""
    return next(iter(numbers_of([version])), None)


class _Chosen(NamedTuple):
    version: int | None
    at: float


class Versions:
    """The versions that were found at one server, by model and signature. Threads may share it."""

    def __init__(self) -> None:
        self._chosen: dict[tuple[str, bytes], _Chosen] = {}

    def known(self, model: str, signature: bytes, now: float) -> bool:
        """Whether `version` can be used without asking the server."""
        chosen = self._chosen.get((model, signature))
        return chosen is not None and now < chosen.at + FRESH

    def version(self, model: str, signature: bytes) -> int | None:
        """The version that was found; None for a server whose versions have no numbers, and if it was forgotten."""
        chosen = self._chosen.get((model, signature))
        return None if chosen is None else chosen.version

    def choose(self, model: str, signature: bytes, served: Iterable[Served], now: float) -> int | None:
        """Take the first version that fits, the latest first. Raises FailedPrecondition if none does."""
        others = []
        for one in served:
            if signature_of(one.inputs, one.outputs) == signature:
                self._chosen[model, signature] = _Chosen(one.version, now)
                return one.version
            others.append(one)
        self.forget(model, signature)
        shown = "; ".join(map(_described, itertools.islice(others, _SHOWN)))
        raise FailedPrecondition(f"{NO_FITTING_VERSION} {model!r} fits the signature that was asked for: {shown}")

    def forget(self, model: str, signature: bytes) -> None:
        """The version is not served any more."""
        self._chosen.pop((model, signature), None)


def _described(one: Served) -> str:
    which = "it" if one.version is None else f"version {one.version}"
    return f"{which} takes {_listed(one.inputs)} and returns {_listed(one.outputs)}"


def _listed(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(map(str, specs)) or "nothing"
