"""A table as Markdown, LaTeX and JSON: the same table gives the same text."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from core.statistics import Check, protocol_lines
from core.tables.latex import document
from core.tables.layout import Block, Entry, blocks, rule
from core.tables.results import Table

_MARKED = re.compile(r"([\\`*_{}\[\]<>|~$&#!])")


def markdown(table: Table, figure: str = "") -> str:
    """The table as Markdown; labels, title and caption are taken as plain text.

    Args:
        figure: path of its figure, relative to where the text will lie; "" for none.
    """
    first, *others = blocks(table)
    parts = [f"# {_plain(first.heading)}", _plain(first.caption), _body(first), _notes(first)]
    parts += ["Protocol:", _checks(first.checks), f"Made by `{table.spec.command}`."]
    if figure:
        parts.append(f"![{_plain(first.heading)}](<{figure}>)")
    for block in others:
        parts += [f"## {_plain(block.heading)}", _body(block), _notes(block)]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(table: Table) -> str:
    """The table as LaTeX, floats for a document that loads booktabs, graphicx and longtable."""
    return document(blocks(table), table.spec.name, table.spec.command)


def as_json(table: Table, versions: Mapping[str, str] | None = None) -> dict[str, Any]:
    """All of the table as plain data for strict JSON; an interval that is not known is null.

    Args:
        versions: what the results may depend on, as `core.runs.versions`.
    """
    spec = asdict(table.spec)
    published = spec.pop("published")
    entries = {
        "name": spec.pop("name"),
        "command": table.spec.command,
        "table": spec,
        "cells": [asdict(cell) for cell in table.cells],
        "overall": [asdict(overall) for overall in table.overall],
        "comparisons": [asdict(contrast) for contrast in table.contrasts],
        "efforts": [asdict(effort) for effort in table.efforts],
        "protocol": [asdict(check) for check in table.checks],
        "rule": rule(table),
        "joint": table.joint,
        "also": {one.spec.score: [asdict(cell) for cell in one.cells] for one in table.also},
        "evaluations": [asdict(evaluation) for evaluation in table.evaluations],
        "published_by_others": published,
        "versions": dict(versions or {}),
    }
    strict: dict[str, Any] = _strict(entries)
    return strict


def _strict(value: Any) -> Any:
    """JSON has no number for what is not finite, and no tuples."""
    if isinstance(value, dict):
        return {key: _strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(text: str) -> str:
    """Text in which nothing is Markdown, on one line."""
    line = _MARKED.sub(r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([-+=.)])(?=[-+=\s]|$)", r"\1\\\2", line)  # a list, a rule or an underline


def _body(block: Block) -> str:
    sides = ["---"] * block.labels + ["---:"] * (len(block.header) - block.labels)
    lines = [[_plain(name) for name in block.header], sides]
    lines += [[_entry(entry) for entry in line] for line in block.body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _entry(entry: Entry) -> str:
    value = f"**{_plain(entry.value)}**" if entry.bold else _plain(entry.value)
    return f"{value} {_plain(entry.detail)}" if entry.detail else value


def _notes(block: Block) -> str:
    return "\n\n".join(map(_plain, block.notes))


def _checks(checks: tuple[Check, ...]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in protocol_lines(checks))
