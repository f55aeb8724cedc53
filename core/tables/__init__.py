"""Benchmark tables: described in YAML, assembled from evaluations, written as Markdown, LaTeX, JSON and a figure.

spec = read_spec(Path("benchmarks/tables/guidance.yaml"))
table = assemble(spec, frame)  # a pandas DataFrame, a line for each evaluation of a trained run
write(table, Path("results"), versions=versions())
"""

from core.tables import figures, render
from core.tables.assemble import assemble
from core.tables.published import Published, PublishedRow, PublishedTable, read_published
from core.tables.results import Cell, Contrast, Effort, Evaluation, Overall, Table
from core.tables.spec import Budget, ColumnSpec, FigureSpec, RowSpec, TableSpec, read_spec
from core.tables.writing import write

__all__ = [
    # what a table is made of
    "Budget",
    "ColumnSpec",
    "FigureSpec",
    "RowSpec",
    "TableSpec",
    "read_spec",
    # what others have published
    "Published",
    "PublishedRow",
    "PublishedTable",
    "read_published",
    # what it holds
    "Cell",
    "Contrast",
    "Effort",
    "Evaluation",
    "Overall",
    "Table",
    "assemble",
    # its files
    "figures",
    "render",
    "write",
]
