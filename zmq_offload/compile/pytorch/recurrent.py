"""LSTM, GRU and RNN of PyTorch: each layer is a loop over time. TVM's front end unrolls it, and knows one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from zmq_offload.compile.operators.recurrent import layer
from zmq_offload.errors import InvalidArgument
from zmq_offload.protocol.payload import Array
from zmq_offload.schedules.recurrent.cell import Activation, Recurrence

if TYPE_CHECKING:
    from zmq_offload.compile.pytorch.importer import ProgramImporter

op = relax.op

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""For each of ONNX's gates, in order, the place where PyTorch has it."""


def recurrent(importer: ProgramImporter, node: Any) -> list[relax.Expr]:
    """All layers. Returns the outputs of the last one, and the last states of each."""
    kind, function = _kind(str(node.target.__name__))
    x, states, weights, biased, layers, dropout, train, both, batch_first = node.args
    if train and dropout:
        raise InvalidArgument("it drops values at random; export the model after model.eval()")
    directions, each = 1 + both, 2 + 2 * biased
    if len(weights) != layers * directions * each:
        raise InvalidArgument("its states are projected (proj_size), which TVM cannot import; use a Linear after it")
    emit, dtype = importer.emit, importer.dtype(x)
    value = _float32(importer, x)
    if batch_first:
        value = emit(op.permute_dims(value, [1, 0, 2]))
    initial = [_float32(importer, state) for state in (states if kind == "LSTM" else [states])]
    last: list[list[relax.Expr]] = [[] for _ in initial]
    for number in range(layers):
        own = weights[number * directions * each : (number + 1) * directions * each]
        arrays = [[importer.array(weight) for weight in own[at::each]] for at in range(each)]
        w, r, *b = (np.stack([_onnx_order(kind, a) for a in group]) for group in arrays)
        activations = tuple(Activation(name) for name in function)
        geometry = Recurrence(
            kind,
            r.shape[-1],
            reverse=False,
            activations=(activations,) * directions,
            after_reset=kind == "GRU",
            bias=kind == "GRU" and biased,
            initial_h=True,
            initial_c=kind == "LSTM",
        )
        begin = number * directions
        first = [emit(op.strided_slice(s, [0], [begin], [begin + directions])) for s in initial]
        y, *found = layer(
            importer.block_builder,
            geometry,
            value,
            relax.const(w, "float32"),
            relax.const(r, "float32"),
            relax.const(np.concatenate(b, axis=-1), "float32") if b else None,
            first,
        )
        time, _, batch, hidden = y.ty.shape.values
        value = emit(op.reshape(emit(op.permute_dims(y, [0, 2, 1, 3])), [time, batch, directions * hidden]))
        for kept, state in zip(last, found, strict=True):
            kept.append(state)
    if batch_first:
        value = emit(op.permute_dims(value, [1, 0, 2]))
    results = [value, *(emit(op.concat(kept, axis=0)) if layers > 1 else kept[0] for kept in last)]
    return [v if dtype == "float32" else emit(op.astype(v, dtype)) for v in results]


def _kind(name: str) -> tuple[str, tuple[str, ...]]:
    """The kind of network, and ONNX's names of its activations."""
    known = {
        "lstm.input": ("LSTM", ("Sigmoid", "Tanh", "Tanh")),
        "gru.input": ("GRU", ("Sigmoid", "Tanh")),
        "rnn_tanh.input": ("RNN", ("Tanh",)),
        "rnn_relu.input": ("RNN", ("Relu",)),
    }
    return known[name]


def _float32(importer: ProgramImporter, node: Any) -> relax.Expr:
    value = importer.value(node)
    return value if importer.dtype(node) == "float32" else importer.emit(op.astype(value, "float32"))


def _onnx_order(kind: str, array: Array) -> Array:
    """A weight or a bias, of which the first dimension holds the gates, in ONNX's order."""
    parts = np.split(array.astype("float32"), len(_GATES[kind]))
    return np.concatenate([parts[at] for at in _GATES[kind]])
