"""The documentation names what exists: files, names in the code, and links of the site."""

from __future__ import annotations

import contextlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zmq_offload
import zmq_offload.compile
import zmq_offload.errors
import zmq_offload.testing

ROOT = Path(__file__).parent.parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()


def exists(name: str) -> bool:
    """Whether a dotted name leads to an object."""
    with contextlib.suppress(ImportError, AttributeError):
        pkgutil.resolve_name(name)
        return True
    return False


def glossary_names() -> list[str]:
    """What stands in the third column of the glossary, options and files left out."""
    cells = re.findall(r"^\| \*\*.*\| ([^|]*) \|$", GLOSSARY, re.M)
    return [name for cell in cells for name in re.findall(r"`([\w.]+)`", cell) if not name.endswith((".so", ".json"))]


def test_the_names_in_the_glossary_exist() -> None:
    names = glossary_names()
    assert len(names) > 30
    assert not [name for name in names if not exists(f"zmq_offload.{name}") and not exists(name)]


def test_each_word_of_the_glossary_stands_there_once() -> None:
    rows = re.findall(r"^\| (\*\*.*?) \|", GLOSSARY, re.M)
    words = [word for row in rows for word in re.findall(r"\*\*(.+?)\*\*", row)]
    assert len(words) == len(set(words)) > 40


def test_the_files_in_contributing_exist() -> None:
    files = re.findall(r"`([\w.-]+(?:/[\w.-]*)+|[\w-]+\.(?:toml|md|py))`", CONTRIBUTING)
    assert len(files) > 30
    assert not [file for file in files if not (ROOT / file).exists()]


def test_the_modules_that_contributing_runs_exist() -> None:
    modules = re.findall(r"python -m (tests[\w.]+)", CONTRIBUTING)
    assert modules
    assert not [module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").exists()]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("lose", "broker/ledger.py"),
        ("_authorize", "broker/core.py"),
        ("_CODES", "zmq_offload/protocol/messages.py"),
        ("FROM_CLIENT", "zmq_offload/protocol/messages.py"),
        ("VERSION", "zmq_offload/protocol/messages.py"),
        ("_ON", "workers/session.py"),
        ("received", "zmq_offload/client/session.py"),
        ("ToClient", "broker/events.py"),
        ("ToWorker", "broker/events.py"),
        ("KERNEL", "zmq_offload/schedules/operators.py"),
        ("KERNELS", "zmq_offload/schedules/schedule.py"),
        ("_kernel", "zmq_offload/schedules/schedule.py"),
        ("Unsupported", "zmq_offload/schedules/rewrite.py"),
        ("COMMANDS", "zmq_offload/cli/main.py"),
        ("add_options", "zmq_offload/cli/status.py"),
        ("add_option", "zmq_offload/console/settings.py"),
        ("wire_types", "zmq_offload/byoc/encoding.py"),
        ("WIRE_TOLERANCE", "zmq_offload/compile/check.py"),
        ("_sent", "zmq_offload/plan/costs.py"),
        ("CONVERTERS", "zmq_offload/compile/operators/converters.py"),
        ("refuse", "zmq_offload/compile/operators/node.py"),
    ],
)
def test_the_names_of_the_recipes_exist(name: str, file: str) -> None:
    assert f"`{name}" in CONTRIBUTING
    assert re.search(rf"\b{name}\b", (ROOT / file).read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img)[^>]* src=\"([^\"]*)|<link[^>]*stylesheet[^>]* href=\"([^\"]*)", page.read_text()
        )
        assert not [link for links in loaded for link in links if "//" in link], page


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    shown = {
        id for page in (site / "api").glob("*.html") for id in re.findall(r'id="(zmq_offload[\w.]+)"', page.read_text())
    }
    errors = [name for name, value in vars(zmq_offload.errors).items() if isinstance(value, type)]
    assert {f"zmq_offload.errors.{name}" for name in errors} <= shown
    assert {f"zmq_offload.compile.{name}" for name in zmq_offload.compile.__all__} <= shown
    assert {f"zmq_offload.testing.{name}" for name in zmq_offload.testing.__all__} <= shown
    names = set(zmq_offload.__all__) - set(errors) - {"__version__", "load"}
    assert {f"zmq_offload.{name}" for name in names} <= shown
    assert "zmq_offload.device.model.load" in shown
