"""The parameters that `Client` and `AsyncClient` spell out agree with the types that everything else uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from zmq_offload import AsyncClient, Client
from zmq_offload.client.options import InferOptions, SubmitOptions

ONLY_CLIENTS = {"priority": "int", "trace": "Trace"}
"""A device's calls have no priority and no trace of their own, so other kinds of `infer` need not take one."""


def options_of(method: Callable[..., object]) -> dict[str, str]:
    parameters = inspect.signature(method).parameters.values()
    options = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    assert all(parameter.default is not parameter.empty for parameter in options)
    return {parameter.name: parameter.annotation for parameter in options}


def declared(kind: type) -> dict[str, str]:
    return {name: hint.__forward_arg__ for name, hint in inspect.get_annotations(kind).items()}


@pytest.mark.parametrize(
    ("method", "kind"),
    [(Client.infer, InferOptions), (AsyncClient.infer, InferOptions), (Client.submit, SubmitOptions)],
)
def test_the_clients_spell_out_the_options_of_a_call(method: Callable[..., object], kind: type) -> None:
    assert options_of(method) == {**declared(kind), **ONLY_CLIENTS}
