"""Modules of PyTorch that several networks use, and the registry of networks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Made = tuple[Any, tuple[Any, ...]]
"""A module and its example inputs."""

BUILDERS: dict[str, Callable[[], Made]] = {}


def network(name: str) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    def add(make: Callable[[], Made]) -> Callable[[], Made]:
        BUILDERS[name] = make
        return make

    return add


class First(nn.Module):
    """The first output of a module of transformers or torchvision, or the one with the given name."""

    def __init__(self, inner: nn.Module, name: str = "last_hidden_state", **options: Any) -> None:
        super().__init__()
        self.inner, self.name, self.options = inner, name, options

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(*inputs, **self.options)[self.name]


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Sequence(nn.Module):
    """A recurrent layer, and a projection of each step."""

    def __init__(self, layer: nn.RNNBase, classes: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0])
