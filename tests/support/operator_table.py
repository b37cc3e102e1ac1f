"""Write docs/models.md: which models can be compiled, and each operator with ONNX's own tests of it.

`python -m tests.support.operator_table` runs all tests, which takes about 10 minutes, and writes the page. It does not
write a page on which fewer tests pass than on the last one.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from tests.support.model_cases import model_cases
from tests.support.operator_cases import CRASH, DIFFERS, RIGHT, Case, Outcome, cases, outcome, without_numbers

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

TEMPLATE = Path(__file__).with_name("models.md")
"""The text of the page, with a place for each number and table that is measured."""


def operator_of(case: Case) -> str | None:
    """The operator that a case tests; None for those whose operator ONNX has written out as others."""
    return case.model.graph.node[0].op_type if len(case.model.graph.node) == 1 else None


def reason(detail: str) -> str:
    """Why a case is refused, without the names of this one."""
    text = re.sub(r"^cannot import the operators? \w+ \(.*?\'\):? ", "", detail)
    text = re.sub(r"^\S+ is (of|for|a) ", "", text)  # the file's name
    text = re.sub(r"^\S+\.onnx: ", "", text)
    text = re.sub(r" \(operator .*|(?<=to opset 11): .*", "", text)
    text = re.sub(r"^--input '[^']*': dimension \d is 0", "an input without elements", text)
    text = re.sub(r"\w+ \([\w.]+, node '[^']*'( and \d+ others?)?\)", "", text)
    text = re.sub(r",? ?'[^']*',?| \('[^']*'\)", "", text).split("; ")[0]
    return " ".join(text.replace("|", "/").split())[:90] or "no reason"


def both(case: Case) -> list[Outcome]:
    """The outcomes with all inputs computed at run time, and with all but the first as constants."""
    return [outcome(case, constant) for constant in ([False, True] if len(case.inputs) > 1 else [False])]


Result = tuple[str, str, list[Outcome]]
"""The name of a case, its operator, and its outcomes."""


def right(found: Iterable[Outcome]) -> bool:
    return any(one.kind == RIGHT for one in found)


def rows(results: Iterable[Result]) -> str:
    """The rows of the table: the outcomes of the cases by operator. Ends the program for a wrong result."""
    passed: dict[str, int] = defaultdict(int)
    refused: dict[str, list[str]] = defaultdict(list)
    for name, operator, found in results:
        for one in found:
            if one.kind in (CRASH, DIFFERS):
                raise SystemExit(f"{name}: {one.kind}: {one.detail}")
        if right(found):
            passed[operator] += 1
        else:
            refused[operator].append(reason(found[-1].detail))
    lines = []
    for operator in sorted({*passed, *refused}):
        why = ", ".join(sorted(set(refused[operator]))[:2])
        lines.append(f"| {operator} | {passed[operator]} | {len(refused[operator])} | {why} |")
    return "\n".join(lines)


def tested() -> list[tuple[Case, str]]:
    """The cases of the table, each with its operator."""
    return [(case, operator) for case in cases() if (operator := operator_of(case)) is not None]


def measured() -> Iterator[Result]:
    for case, operator in tested():
        yield case.name, operator, both(case)


def page(results: list[Result], models: list[Result]) -> str:
    """The page with the given outcomes of ONNX's tests of operators and of models."""
    from zmq_offload.compile.onnx.file import OLDEST_OPSET
    from zmq_offload.compile.operators.contrib import CONTRIB_CONVERTERS
    from zmq_offload.compile.operators.loops import MOST_NODES
    from zmq_offload.compile.operators.qlinear import EXPANSIONS
    from zmq_offload.compile.operators.schemas import BY_TVM, MICROSOFT

    contrib = BY_TVM | CONTRIB_CONVERTERS.keys() | {name for domain, name in EXPANSIONS if domain == MICROSOFT}
    total, other = len(results), without_numbers()
    passed = sum(right(found) for _, _, found in results)
    values = {
        "contrib": ", ".join(f"`{name}`" for name in sorted(contrib)),
        "model_right": sum(right(found) for _, _, found in models),
        "model_total": len(models),
        "most_nodes": f"{MOST_NODES:,}",
        "newest": onnx.defs.onnx_opset_version(),
        "oldest": OLDEST_OPSET,
        "other": other,
        "right": passed,
        "rows": rows(results),
        "share": f"{100 * passed / total:.1f}",
        "share_of_all": f"{100 * passed / (total + other):.1f}",
        "total": total,
        "version": onnx.__version__,
    }
    return re.sub(r"\{(\w+)\}", lambda match: str(values[match.group(1)]), TEMPLATE.read_text())


def counts(text: str) -> tuple[int, int]:
    """How many of ONNX's operator tests are right, and how many there are, as a page says."""
    found = re.search(r"\*\*(\d+) of (\d+)", text)
    assert found is not None, "the page does not say how many tests are right"
    return int(found.group(1)), int(found.group(2))


def write(results: list[Result], models: list[Result]) -> None:
    """Write the page, unless fewer tests are right than on the last one."""
    text = page(results, models)
    (before, all_before), (now, all_now) = counts(PAGE.read_text()), counts(text)
    if all_now == all_before and now < before:
        raise SystemExit(f"{now} of {all_now} tests are right, {before} were; the share may only rise")
    PAGE.write_text(text)
    print(f"{now} of {all_now} tests of operators are right ({100 * now / all_now:.1f} %)", file=sys.stderr)


def main() -> None:
    write(list(measured()), [(case.name, "", both(case)) for case in model_cases()])


if __name__ == "__main__":
    main()
