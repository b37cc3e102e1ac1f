"""What a path of TensorFlow Serving's REST API asks for. Pure.

POST /v1/models/NAME[/versions/N|/labels/L]:predict
GET  /v1/models/NAME[/versions/N|/labels/L][/metadata]
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

from zmq_offload.errors import InvalidArgument, Unimplemented
from zmq_offload.protocol.names import check_label

_MODEL = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
_POST = re.compile(_MODEL + ":(classify|predict|regress)", re.ASCII)
_GET = re.compile(_MODEL + "(?:/(metadata))?", re.ASCII)

_DIGITS = 19
"""Digits of the largest version that TensorFlow Serving can write. Python takes time for longer numbers."""


class Target(NamedTuple):
    """A model, its version or label (neither: the latest, or all for its status), and "predict", "metadata" or
    "status"."""

    model: str
    version: int | None
    label: str
    action: str


def target(method: str, path: str) -> Target:
    """Read a method and a path. Raises InvalidArgument, as TensorFlow Serving does for every wrong path, or
    Unimplemented."""
    found = _POST.fullmatch(path) if method == "POST" else _GET.fullmatch(path) if method == "GET" else None
    if found is None:
        raise InvalidArgument(
            f"{method} {path!r:.200} is not a request of TensorFlow Serving; use POST /v1/models/NAME:predict, or GET "
            "/v1/models/NAME or /v1/models/NAME/metadata"
        )
    name, digits, label, action = found.groups()
    if action in ("classify", "regress"):
        raise Unimplemented(f"{action} is not here: models take tensors, not examples; use predict")
    if digits is not None and len(digits) > _DIGITS:
        raise InvalidArgument(f"version {digits:.40} is not a number of at most {_DIGITS} digits")
    label = check_label(unquote(label)) if label is not None else ""
    return Target(unquote(name), int(digits or 0) or None, label, action or "status")
