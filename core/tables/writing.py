"""A table's four files."""

import json
from collections.abc import Mapping
from pathlib import Path

from core.files import check_writable, write_text
from core.tables.figures import draw
from core.tables.render import as_json, latex, markdown
from core.tables.results import Table


def write(table: Table, folder: Path, name: str | None = None, versions: Mapping[str, str] | None = None) -> list[Path]:
    """Write NAME.md, NAME.tex, NAME.json and NAME.png, each whole or not at all, and return their paths.

    Args:
        name: of the files; the table's own where none is given. versions: kept in the JSON.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    name = name or table.spec.name
    texts = {
        "md": markdown(table, f"{name}.png"),
        "tex": latex(table),
        "json": json.dumps(as_json(table, versions), indent=2, allow_nan=False, ensure_ascii=False) + "\n",
    }
    check_writable(folder)
    for kind, text in texts.items():
        write_text(folder / f"{name}.{kind}", text)
    draw(table, folder / f"{name}.png")
    return [folder / f"{name}.{kind}" for kind in (*texts, "png")]
