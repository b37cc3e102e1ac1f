"""What TensorFlow Serving says of a model: the states of its versions, and what one of them takes and returns. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from zmq_offload.errors import FailedPrecondition, InvalidArgument, NotFound, OffloadError, Unavailable, printable
from zmq_offload.protobuf.tensorflow import DATATYPES
from zmq_offload.transports.url import Url
from zmq_offload.transports.versions import numbers_of

SIGNATURE = "serving_default"
"""The signature that runs if a request names none."""

SIGNATURE_DEF = "signature_def"

OURS = {tensorflow: ours for ours, (tensorflow, _) in DATATYPES.items()}
"""TensorFlow's name of a datatype -> ours."""

AVAILABLE = "AVAILABLE"
_COMING = ("START", "LOADING")
"""States of versions that will be served."""

_SHOWN = 8
"""Names or versions that a message has."""


class Status(NamedTuple):
    """A version and its state. `why` is what went wrong, in the server's words, or ""."""

    version: str
    state: str
    why: str


def available(model: str, statuses: Sequence[Status]) -> list[int]:
    """The versions that are served, the latest first. Raises NotFound, or Unavailable if one is being loaded."""
    found = numbers_of(one.version for one in statuses if one.state == AVAILABLE)
    if found:
        return found
    shown = ", ".join(
        f"version {one.version:.20} is {one.state:.20}"
        + (f" ({printable(' '.join(one.why.split()))[:300]})" if one.why else "")
        for one in statuses[:_SHOWN]
    )
    raise meant(
        NotFound(f"the server serves no version of model {model!r}: {shown or 'it knows none'}"), None, statuses
    )


def meant(error: NotFound, version: int | None, statuses: Iterable[Status]) -> OffloadError:
    """The error of a call, with what the server says of the model: what is not there may only not be loaded yet."""
    for one in statuses:
        if one.state in _COMING and version in (None, *numbers_of([one.version])):
            return Unavailable(f"version {one.version:.20} is {one.state}: {error.message}")
    return error


def datatype_of(name: str) -> str:
    """Our name of a datatype; for those that we have not, TensorFlow's name without what all begin with."""
    return OURS.get(name, name.removeprefix("DT_"))


def no_signature(names: Iterable[str]) -> FailedPrecondition:
    """The error for a model without the signature that is called."""
    found = ", ".join(f"{name!r:.100}" for name in list(names)[:_SHOWN])
    return FailedPrecondition(f"the served model has no signature {SIGNATURE!r}; it has {found or 'none'}")


def any_rank(name: str) -> FailedPrecondition:
    """The error for a tensor whose shape the model leaves open."""
    return FailedPrecondition(f"tensor {name!r:.100} of the served model has any rank; a bundle's tensors have shapes")


def label_of(url: Url) -> str:
    """The label that stands for the version in calls without one, or "". Raises InvalidArgument."""
    label = url.query.get("label")
    if label is not None and not (0 < len(label) <= 100 and label.isprintable()):
        raise InvalidArgument(f"server {url.shown!r} has a label that is none; use one such as label=stable")
    return label or ""
