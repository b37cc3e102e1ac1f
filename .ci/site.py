"""A hook of mkdocs: the pages that GitHub shows from outside docs/, with links that work on the site as well."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "examples/README.md": "examples.md",
    "examples/mask_rcnn/README.md": "mask_rcnn.md",
}
"""The page of the site for each file of the repository; docs/X is X."""

_ORIGINS = {page: file for file, page in PAGES.items()}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)|(!\[[^\]]*\]\(|<img src=\")([^)\"\s]+)")


def on_files(files: Files, config: Any) -> Files:
    for file, page in PAGES.items():
        text = (ROOT / file).read_text()
        if page == "examples.md":
            text += "".join(_listing(example) for example in sorted((ROOT / "examples").glob("[!_]*.py")))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    uri = page.file.src_uri
    folder = posixpath.dirname(_ORIGINS.get(uri, f"docs/{uri}"))

    def replace(match: re.Match[str]) -> str:
        text, link, image, source = match.groups()
        if image:
            return f"{image}{_target(folder, source, uri) or source}"
        target = _target(folder, link, uri)
        return text if target is None else f"[{text}]({target})"

    # Code is left as it is.
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else _LINK.sub(replace, part) for part in parts)


def _target(folder: str, link: str, page: str) -> str | None:
    """Where a link leads on the site; None for a file of the repository that the site does not show."""
    path, hash_, anchor = link.partition("#")
    if not path or "://" in path:
        return link
    file = posixpath.normpath(posixpath.join(folder, path))
    if not (ROOT / file).exists():
        return link  # mkdocs complains about it
    if re.fullmatch(r"examples/\w+\.py", file):
        target, hash_, anchor = "examples.md", "#", posixpath.basename(file).replace(".", "")
    elif file in PAGES:
        target = PAGES[file]
    elif f"{file}/README.md" in PAGES:
        target = PAGES[f"{file}/README.md"]
    elif file.startswith("docs/"):
        target = file.removeprefix("docs/")
    else:
        return None
    return posixpath.relpath(target, posixpath.dirname(page) or ".") + hash_ + anchor


def _listing(example: Path) -> str:
    return f"\n## {example.name}\n\n```python\n{example.read_text()}```\n"
