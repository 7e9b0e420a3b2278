"""The report of a validation: Markdown, one self-contained HTML page, pictures, numbers."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .found import Found, Table

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c22; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1.5rem; }
p.method { color: #555; } img { max-width: 100%; height: auto; }
div.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; margin: 0.5rem 0 1.5rem; }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 0.8rem 0.2rem 0; border-bottom: 1px solid #eee; }
caption { text-align: left; font-weight: 600; padding: 0.4rem 0; } nav a { margin-right: 1rem; }
@media (prefers-color-scheme: dark) { body { background: #16161a; color: #e6e6ea; } p.method { color: #aaa; }
  th, td { border-color: #333; } h2 { border-color: #333; } a { color: #8ab4ff; } img { background: #fff; } }
"""


def write(out: Path, title: str, about: Sequence[str], studies: Sequence[Found]) -> None:
    """`report.md`, `report.html`, `numbers.json` and the pictures, into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for study in studies:
        for name, drawn in study.pictures.items():
            drawn.savefig(out / name, dpi=110)
    (out / "report.md").write_text(markdown(title, about, studies), encoding="utf-8")
    (out / "report.html").write_text(html(out, title, about, studies), encoding="utf-8")
    numbers = {
        study.name: {"findings": study.findings, "seconds": round(study.seconds, 1), **study.numbers}
        for study in studies
    }
    content = json.dumps({"about": list(about), **numbers}, indent=1, ensure_ascii=False)
    (out / "numbers.json").write_text(content + "\n", encoding="utf-8")


def markdown(title: str, about: Sequence[str], studies: Sequence[Found]) -> str:
    lines = [f"# {title}", "", *(f"- {line}" for line in about)]
    for study in studies:
        lines += [
            "",
            f"## {study.title}",
            "",
            f"*{study.method}*",
            "",
            *(f"- {line}" for line in study.findings),
        ]
        for name in study.pictures:
            lines += ["", f"![{study.title}]({name})"]
        for table in study.tables:
            lines += ["", f"**{table.title}**", "", *_markdown_table(table)]
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table) -> list[str]:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(table.columns), "|" + " --- |" * len(table.columns), *(line(row) for row in table.rows)]


def html(out: Path, title: str, about: Sequence[str], studies: Sequence[Found]) -> str:
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in about) + "</ul>",
        "<nav>" + "".join(f'<a href="#{s.name}">{escape(s.name)}</a>' for s in studies) + "</nav>",
    ]
    for study in studies:
        parts.append(f'<h2 id="{study.name}">{escape(study.title)}</h2>')
        parts.append(f'<p class="method">{escape(study.method)}</p>')
        parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in study.findings) + "</ul>")
        for name in study.pictures:
            picture = base64.b64encode((out / name).read_bytes()).decode("ascii")
            parts.append(f'<img alt="{escape(name)}" src="data:image/png;base64,{picture}">')
        parts += [_html_table(table) for table in study.tables]
    return "\n".join([*parts, "</body></html>", ""])


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return f'<div class="wide"><table><caption>{escape(table.title)}</caption><tr>{head}</tr>{body}</table></div>'
