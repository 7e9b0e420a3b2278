"""What the site adds to docs/*.md: pages that stand at the repository's root, files that pages link to, and the
benchmarks' tables and pictures (figures.py). mkdocs calls the functions here; nothing is fetched.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from click import Context
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

import figures  # noqa: E402  (beside this file)

# Page of the site → the file at the root that it shows.
FROM_ROOT = {
    "index.md": "README.md",
    "house.md": "ARCHITECTURE.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
# Folders that pages link to → what the link opens.
FOLDERS = {
    "bench/results": "docs/benchmarks.md",
    "examples/behaviour_study": "examples/behaviour_study/README.md",
}
# The page of the commands, made from their own help.
COMMANDS = "reference/commands.md"
# Where the site has what lies outside docs/.
KEPT = "files"

_LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")
_FILL = re.compile(r"^<!-- (table|ratios|bars) ([\w-]+)(?: (.+?))? -->$", re.M)


def on_files(files: Files, config: Any) -> Files:
    """Pages from the root, files that are linked to, pictures."""
    for page, source in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, COMMANDS, content=_commands()))
    for picture, name in figures.PICTURES.items():
        files.append(File.generated(config, f"pictures/{picture}", content=figures.bars(figures.read(name))))
    linked = set()
    for page in list(files.documentation_pages()):
        for _, link in _LINK.findall(page.content_string):
            target = _target(page.src_uri, link)
            if not target.is_relative_to(DOCS) and target.is_file() and str(_page(target)) == str(target):
                linked.add(target)
    for target in sorted(linked):
        files.append(File.generated(config, _kept(target), content=target.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the site has them, figures where the page asks for them."""
    here = page.file.src_uri

    def rewrite(match: re.Match[str]) -> str:
        target = _page(_target(here, match[2]))
        if target.is_relative_to(DOCS):
            uri = target.relative_to(DOCS).as_posix()
        elif target.is_file():
            uri = _kept(target)
        else:
            raise PluginError(f"{here} links to {match[2]}, and there is no {target}")
        return match[1] + os.path.relpath(uri, os.path.dirname(here) or ".")

    return _FILL.sub(lambda match: _filled(here, *match.groups()), _LINK.sub(rewrite, markdown))


def _commands() -> str:
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from emosteer.cli import app

    command = get_command(app)
    made = get_docs_for_click(obj=command, ctx=Context(command, info_name="emosteer"), name="emosteer")
    return made.replace("# `emosteer`", "# Commands", 1)


def _filled(here: str, kind: str, name: str, rest: str | None) -> str:
    found = figures.read(name)
    if kind == "table":
        made = figures.table(found, rest.split(", ") if rest else ())
    elif kind == "ratios":
        made = figures.ratios(found, rest)
    else:
        picture = next(p for p, source in figures.PICTURES.items() if source == name)
        made = f"![{rest}](pictures/{picture})\n\n{found.caption}"
    if found.predicted:
        return f'!!! warning "Predicted"\n    No GPU has run this.\n\n{made}'
    return made


def _target(here: str, link: str) -> Path:
    """The file that a page's link means; pages from the root link as they do there."""
    base = ROOT / FROM_ROOT[here] if here in FROM_ROOT else DOCS / here
    return Path(os.path.normpath(base.parent / link))


def _page(target: Path) -> Path:
    """The page that shows a file or folder, else the file itself."""
    if target.is_relative_to(ROOT):
        name = target.relative_to(ROOT).as_posix()
        name = FOLDERS.get(name, name)
        for page, source in FROM_ROOT.items():
            if name == source:
                return DOCS / page
        return ROOT / name
    return target


def _kept(target: Path) -> str:
    """Markdown is kept as text: it is no page of the site."""
    name = f"{KEPT}/{target.relative_to(ROOT).as_posix()}"
    return f"{name}.txt" if name.endswith(".md") else name
