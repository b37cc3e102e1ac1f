"""The bodies of predict over REST, in both of TensorFlow Serving's forms. Pure.

The row form ("instances", "predictions") lists rows, which are stacked to a batch. The column form ("inputs",
"outputs") has whole tensors. A tensor has its name beside it, unless the model has just one.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Any

from zmq_offload.errors import InvalidArgument
from zmq_offload.gateway.calls import Buffer
from zmq_offload.gateway.catalog import Model
from zmq_offload.gateway.oip.parameters import shown
from zmq_offload.gateway.tfserving.signatures import check_signature_name
from zmq_offload.gateway.tfserving.values import array_of, is_base64, nested, parse, text
from zmq_offload.protocol import limits
from zmq_offload.protocol.payload import Array
from zmq_offload.protocol.tensors import ANY


class Form(enum.Enum):
    """How inputs were given, and outputs are returned."""

    COLUMNS = "inputs"
    ROWS = "instances"
    ONE = "one instance"
    """A single instance for a model without a batch dimension. It is the whole input, its prediction all outputs."""


def request(body: Buffer, model: Model) -> tuple[dict[str, Array], Form]:
    """The inputs of a body. Raises InvalidArgument, or FailedPrecondition for an unknown signature."""
    document = parse(body)
    if type(document) is not dict:
        raise InvalidArgument('the body is not a JSON object; use {"instances": [...]} or {"inputs": ...}')
    signature = document.get("signature_name", "")
    if type(signature) is not str:
        raise InvalidArgument(f"signature_name {shown(signature)} is not a string")
    check_signature_name(signature)
    if ("instances" in document) == ("inputs" in document):
        number = "both" if "inputs" in document else "neither"
        raise InvalidArgument(f"the body has {number} of 'instances' and 'inputs'; give one of them")
    if "inputs" in document:
        return _columns(document["inputs"], model), Form.COLUMNS
    rows = document["instances"]
    if type(rows) is not list or not rows:
        raise InvalidArgument("'instances' is not a list of at least one row")
    return _rows(rows, model)


def _columns(value: object, model: Model) -> dict[str, Array]:
    if type(value) is not dict or is_base64(value):
        value = {_only_input(model, "'inputs'"): value}
    return _arrays(value, model)


def _rows(rows: list[Any], model: Model) -> tuple[dict[str, Array], Form]:
    named = type(rows[0]) is dict and not is_base64(rows[0])
    if named:
        names = rows[0].keys()
        _check_count(names)
        for number, row in enumerate(rows):
            if type(row) is not dict or row.keys() != names:
                raise InvalidArgument(f"row {number} of 'instances' is not an object with the names of row 0")
        columns = {name: [row[name] for row in rows] for name in names}
    else:
        columns = {_only_input(model, "'instances'"): rows}
    arrays = _arrays(columns, model)
    specs = [spec for spec in model.inputs if spec.name in arrays]
    if len(rows) == 1 and specs and all(spec.fits(arrays[spec.name].shape[1:]) for spec in specs):
        return {name: array.reshape(array.shape[1:]) for name, array in arrays.items()}, Form.ONE
    for spec in specs:
        if len(spec.shape) == arrays[spec.name].ndim and spec.shape[0] not in (ANY, len(rows)):
            raise InvalidArgument(
                f"'instances' has {len(rows)} rows, but the batch of model {model.name!r} is fixed: it takes {spec}"
            )
        if len(spec.shape) < arrays[spec.name].ndim and len(rows) > 1:
            raise InvalidArgument(
                f"'instances' has {len(rows)} rows of {arrays[spec.name].ndim - 1} dimensions, but model "
                f"{model.name!r} takes {spec}; send one row, or use 'inputs'"
            )
    return arrays, Form.ROWS


def _only_input(model: Model, what: str) -> str:
    if len(model.inputs) != 1:
        listing = "; ".join(map(str, model.inputs)) or "tensors of any name"
        raise InvalidArgument(f"{what} has a tensor without a name, but model {model.name!r} takes {listing}")
    return model.inputs[0].name


def _check_count(names: Collection[str]) -> None:
    if len(names) > limits.TENSORS:
        raise InvalidArgument(f"the body has {len(names)} tensors; the limit is {limits.TENSORS}")


def _arrays(columns: Mapping[str, object], model: Model) -> dict[str, Array]:
    _check_count(columns)
    specs = {spec.name: spec for spec in model.inputs}
    if specs and columns.keys() != specs.keys():
        given = ", ".join(map(repr, columns))
        listing = "; ".join(map(str, model.inputs))
        raise InvalidArgument(f"the inputs are {given or 'none'} but model {model.name!r} takes {listing}"[:1000])
    return {name: array_of(value, specs.get(name), f"input {name!r:.100}") for name, value in columns.items()}


def response(outputs: Mapping[str, Array], form: Form) -> bytes:
    """The body for outputs. Raises InvalidArgument for outputs that have no rows, if rows were asked for."""
    if form is Form.ROWS:
        return text({"predictions": _predictions(outputs)}, outputs.values())
    lists = {name: nested(name, array) for name, array in outputs.items()}
    whole = lists.popitem()[1] if len(lists) == 1 else lists
    return text({"predictions": [whole]} if form is Form.ONE else {"outputs": whole}, outputs.values())


def _predictions(outputs: Mapping[str, Array]) -> list[Any]:
    batches = {array.shape[:1] for array in outputs.values()}
    if len(batches) > 1 or () in batches:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
        raise InvalidArgument(f"the outputs cannot be divided into rows: they are {shapes}; use 'inputs'"[:1000])
    columns = [nested(name, array) for name, array in outputs.items()]
    if len(columns) == 1:
        return columns[0]  # type: ignore[no-any-return]
    return [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]
