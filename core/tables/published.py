"""Numbers that others have published: kept as data, shown in a block of their own, never in our statistics."""

from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import UserError, nearest
from core.tables.reading import build, load_yaml


@dataclass(frozen=True)
class PublishedRow:
    """A method's published scores.

    Attributes:
        scores: one for each column, None where none is published. source: where it is not the table's own.
        second_hand: copied from a later paper. note: a caveat.
    """

    scores: tuple[float | None, ...]
    source: str = ""
    second_hand: bool = False
    note: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A published table.

    Attributes:
        title: what it measures. source: the paper. arxiv: its identifier, None where not looked up.
        unit: of the scores. protocol: rules, data and normalisation behind them. second_hand: all of it.
        columns: their names. rows: by method. notes: caveats.
    """

    title: str
    source: str
    unit: str
    protocol: str
    columns: tuple[str, ...]
    rows: dict[str, PublishedRow]
    arxiv: str | None = None
    second_hand: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns are {list(self.columns)}: give one or more, each of its own name")
        if not self.rows:
            raise ValueError("rows is empty: give one or more methods")
        for name, row in self.rows.items():
            if len(row.scores) != len(self.columns):
                raise ValueError(f"rows.{name}.scores has {len(row.scores)} numbers: expected {len(self.columns)}")


@dataclass(frozen=True)
class Choice:
    """What a table of ours shows of a published one, as its YAML says it.

    Attributes:
        table: name of the published table. note: why its numbers are, or are not, comparable with ours.
        rows: methods, None for all.
        columns: the published column for a column of ours. None for the columns of ours, by their names, of which the
            published table may lack some; or for all of theirs where it has none of them.
    """

    table: str
    note: str
    rows: tuple[str, ...] | None = None
    columns: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.note.strip():
            raise ValueError("note is empty: say why the published numbers are, or are not, comparable")
        if self.rows is not None and (not self.rows or len(set(self.rows)) < len(self.rows)):
            raise ValueError(f"rows are {list(self.rows)}: name one or more, none twice")


@dataclass(frozen=True)
class Published:
    """Published rows beside a table of ours.

    Attributes:
        name: of the published table. note: on comparing them.
        table: cut to the rows and columns that are shown; a column of ours that it lacks has no scores.
        beside: for each column shown, the column of ours that it stands for; empty where nothing is said of that.
    """

    name: str
    table: PublishedTable
    note: str
    beside: tuple[str, ...] = ()


def read_published(path: Path) -> dict[str, PublishedTable]:
    """All published tables of a file, by name.

    Raises:
        UserError: it cannot be read, or a table in it is not as expected; one line that names the file and the key.
    """
    entries = load_yaml(path)
    try:
        return {str(name): build(PublishedTable, table, f"{name}.") for name, table in entries.items()}
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def choose(choice: Choice, tables: dict[str, PublishedTable], ours: tuple[str, ...]) -> Published:
    """The rows and columns of a published table that a table of ours, with the columns `ours`, shows.

    Raises:
        ValueError: a table, a row or a column that does not exist.
    """
    if choice.table not in tables:
        raise ValueError(f"table is {choice.table!r}: {nearest(choice.table, tables)}")
    table = tables[choice.table]
    for row in choice.rows or ():
        if row not in table.rows:
            raise ValueError(f"rows has {row!r}, which is not in {choice.table!r}: {nearest(row, table.rows)}")
    for column, published in (choice.columns or {}).items():
        if column not in ours:
            raise ValueError(f"columns has {column!r}, which is no column of this table: {nearest(column, ours)}")
        if published not in table.columns:
            raise ValueError(f"columns.{column} is {published!r}: {nearest(published, table.columns)}")
    named = ours if set(ours) & set(table.columns) else ()
    columns = (named or table.columns) if choice.columns is None else tuple(choice.columns.values())
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"columns has the published {list(columns)}: expected one or more, none twice")
    rows = {}
    for name in choice.rows or table.rows:
        scores = dict(zip(table.columns, table.rows[name].scores, strict=True))
        rows[name] = replace(table.rows[name], scores=tuple(scores.get(column) for column in columns))
    beside = named if choice.columns is None else tuple(choice.columns)
    return Published(choice.table, replace(table, columns=columns, rows=rows), choice.note, beside)
