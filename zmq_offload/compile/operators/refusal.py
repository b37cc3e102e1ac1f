"""The one message for operators that cannot be imported: which, where, why, and what to do instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from zmq_offload.errors import InvalidArgument, one_line

REWRITE = "write the model with other operators (docs/models.md lists those that can be imported)"


def cannot_import(operator: str, domain: str, name: str, why: str, instead: str = REWRITE) -> InvalidArgument:
    """The error for one node. `why` begins after a colon, unless it says `with` which attribute or input."""
    link = " " if why.startswith("with ") else ": "
    return InvalidArgument(f"cannot import the operator {described(operator, domain, [name])}{link}{why}; {instead}")


def unknown(operators: Mapping[tuple[str, str], Sequence[str]]) -> InvalidArgument:
    """The error for all operators of a model that nobody can import: names of nodes by (operator, domain)."""
    found = ", ".join(described(operator, domain, names) for (operator, domain), names in operators.items())
    word = "operator" if len(operators) == 1 else "operators"
    what = "its definition is not known" if len(operators) == 1 else "their definitions are not known"
    return InvalidArgument(f"cannot import the {word} {found}: {what}; {REWRITE}")


def described(operator: str, domain: str, names: Sequence[str]) -> str:
    """An operator with its domain and its first node: `Swish (ai.onnx, node 'a' and 3 others)`."""
    others = {0: "", 1: " and 1 other"}.get(len(names) - 1, f" and {len(names) - 1} others")
    return f"{operator} ({domain or 'ai.onnx'}, node {names[0]!r}{others})"


def _operator(found: re.Match[str]) -> str:
    return ("in " if found["in"] else "") + str(found[2])


def reason(error: Exception) -> str:
    """What TVM says of an error, without its stack trace, its source files and its checks' text."""
    text = re.split(r"Stack trace|Traceback \(|\n\s*File \"", str(error))[0]
    text = re.sub(r"^(?:\w+: |\[[\d:]+\] \S+:\d+: )+", "", text.strip())
    text = re.sub(r"(?:InternalError: )?Check failed:? ?\(.*?\) is false:? ?", "", text)
    # TVM shows its operators and its integers as Python objects.
    text = re.sub(r'\b(?:(?P<in>In) )?ir\.Op\(.*?name="(?:relax\.)?([\w.]+)".*?support_level=\d+\)', _operator, text)
    text = re.sub(r"\bT\.int\d+\((-?\d+)\)", r"\1", text)
    return one_line(Exception(text)).rstrip(".") or type(error).__name__
