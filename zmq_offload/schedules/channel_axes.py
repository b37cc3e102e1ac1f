"""Where the layout pass moves the channels, and the operators that take any order of axes."""

from __future__ import annotations

ELEMENTWISE = frozenset(
    "relax." + name
    for name in (
        *("add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "where", "clip", "astype", "abs"),
        *("exp", "log", "sqrt", "rsqrt", "negative", "sigmoid", "tanh", "erf", "floor", "ceil", "round", "square"),
        *("greater", "greater_equal", "less", "less_equal", "equal", "not_equal", "sin", "cos"),
        *("nn.relu", "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh", "nn.silu", "nn.softplus", "nn.selu"),
    )
)
REDUCTIONS = frozenset(f"relax.{name}" for name in ("mean", "sum", "max", "min", "prod", "variance", "std"))


def last_axes(rank: int) -> list[int]:
    """Return the permutation that moves the channels, axis 1, to the end."""
    return [0, *range(2, rank), 1]


def first_axes(rank: int) -> list[int]:
    """Return the permutation that moves the channels back."""
    return [0, rank - 1, *range(1, rank - 1)]
