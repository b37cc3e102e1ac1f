"""Which of ONNX's operators are imported: the table in docs/operators.md, from ONNX's own tests.

`python -m tests.support.operator_table` runs them all (10 minutes or so) and writes docs/operators.md.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import onnx

from tests.support.operator_cases import CRASH, DIFFERS, RIGHT, Case, Outcome, cases, outcome

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"

HEAD = """# Operators

What `zmq-offload compile` makes of each ONNX operator, by ONNX's own tests of it: the number of tests that
compute what ONNX says, and of those that are refused. Each test is tried with all inputs computed at run time,
and with all but the first constant; one of the two has to be right. What is refused is refused when the model is
compiled, by name: the message has the operator, the node, and the attribute or input that cannot be used.

An attribute or input that the importer does not read is refused, too, and so is a result of another datatype or
shape than ONNX says. Of ONNX Runtime's own operators (`com.microsoft`) these are imported:
{contrib}.

Where ONNX and ONNX Runtime disagree (`Resize` with `align_corners` and a scale that gives no whole size) and where
TVM has other definitions (`RoiAlign` with `mode=max`, `LRN` of an even size) the node is refused.
`Shape` is refused as an output of the model, as here; within a model it can be used.

Written by `python -m tests.support.operator_table` with onnx {version}; a test compares it with what happens.

| operator | right | refused | why |
|---|---:|---:|---|
"""


def operator_of(case: Case) -> str | None:
    """The operator that a case tests; None for those whose operator was written out as others."""
    return case.model.graph.node[0].op_type if len(case.model.graph.node) == 1 else None


def reason(detail: str) -> str:
    """Why a case is refused, without the names of this one."""
    text = re.sub(r"^TVM cannot import the operator \w+ ?(\([^)]*\))?:? ?", "", detail)
    text = re.sub(r"^\S+ is of ONNX", "ONNX", text)  # the file's name
    text = re.sub(r"^--input '[^']*': dimension \d is 0", "an input without elements", text)
    text = re.sub(r",? ?'[^']*',?| \('[^']*'\)", "", text).split("; ")[0]
    return " ".join(text.replace("|", "/").split())[:90] or "not known to TVM"


def both(case: Case) -> list[Outcome]:
    return [outcome(case, constant) for constant in ([False, True] if len(case.inputs) > 1 else [False])]


def table(results: Iterable[tuple[str, list[Outcome]]]) -> str:
    """The rows of the table for the outcomes of each case, by operator."""
    right: dict[str, int] = defaultdict(int)
    refused: dict[str, list[str]] = defaultdict(list)
    for operator, found in results:
        for one in found:
            if one.kind in (CRASH, DIFFERS):
                raise SystemExit(f"{operator}: {one.kind}: {one.detail}")
        if any(one.kind == RIGHT for one in found):
            right[operator] += 1
        else:
            refused[operator].append(reason(found[-1].detail))
    rows = []
    for name in sorted({*right, *refused}):
        why = ", ".join(sorted(set(refused[name]))[:2])
        rows.append(f"| {name} | {right[name]} | {len(refused[name])} | {why} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    from zmq_offload.compile.operators.schemas import CONTRIB

    results = ((name, both(case)) for case in cases() if (name := operator_of(case)) is not None)
    contrib = ", ".join(sorted(f"`{name}`" for _, name in CONTRIB))
    PAGE.write_text(HEAD.format(contrib=contrib, version=onnx.__version__) + table(results))


if __name__ == "__main__":
    main()
