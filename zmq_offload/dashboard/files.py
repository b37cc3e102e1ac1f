"""The files of the page. All are read at once, so that no path of a request is ever a path of a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parent / "static"

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

PAGE = "/dashboard"
"""Where the page is; its other files are below."""

EVENTS = f"{PAGE}/events"

PATHS = {
    PAGE: "page.html",
    f"{PAGE}/page.css": "page.css",
    f"{PAGE}/page.js": "page.js",
    f"{PAGE}/charts.js": "charts.js",
    f"{PAGE}/icon.svg": "icon.svg",
}
"""The files by path."""

HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-cache"),
)
"""Headers of all answers: the page uses nothing of other hosts, and no other page uses it."""


class File(NamedTuple):
    """A file of the page."""

    type: str
    body: bytes


def files() -> dict[str, File]:
    """The files by path."""
    return {path: File(_TYPES[name.rpartition(".")[2]], (_FOLDER / name).read_bytes()) for path, name in PATHS.items()}
