"""What a benchmark table is made of, read from YAML and checked."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from core.errors import UserError, nearest
from core.tables.published import Choice, Published, choose, read_published
from core.tables.reading import build, convert, load_yaml

#: The score whose values of different columns can be averaged.
NORMALISED = "normalised_score"

_OPTION = re.compile(r"[A-Za-z_][\w.]*=.*")


@dataclass(frozen=True)
class ColumnSpec:
    """What stands side by side: a task and a data set, or another setting of the evaluation.

    Attributes:
        train, evaluate: options of its trainings and evaluations.
        collect: options that make its data where they are not there; None for data that must exist.
        seeds: of its trainings, None for the table's.
    """

    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    collect: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.seeds is not None:
            _check_seeds(self.seeds)
        _check_options(train=self.train, evaluate=self.evaluate, collect=self.collect or ())


@dataclass(frozen=True)
class RowSpec:
    """A method. Rows with equal `train` share their trainings.

    Attributes:
        train, evaluate: options of its trainings and evaluations.
        tuning_trials: configurations tried before this one, None where not stated.
        cloning: it is the table's behaviour cloning.
        x: its place on the figure's axis, None for a row that is a line across. series: the curve that it is part of.
        columns: those that it is trained and evaluated in, None for all.
    """

    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    tuning_trials: int | None = None
    cloning: bool = False
    x: float | None = None
    series: str = ""
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_options(train=self.train, evaluate=self.evaluate)
        if self.columns is not None and (not self.columns or len(set(self.columns)) < len(self.columns)):
            raise ValueError(f"columns are {list(self.columns)}: name one or more, none twice")
        if self.tuning_trials is not None and self.tuning_trials < 0:
            raise ValueError(f"tuning_trials is {self.tuning_trials}: expected 0 or more, 0 for none")


@dataclass(frozen=True)
class Budget:
    """What one training may take: CPU cores and minutes."""

    cpus: int
    minutes: float

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise ValueError(f"cpus is {self.cpus}: expected 1 or more")
        if not self.minutes > 0:
            raise ValueError(f"minutes is {self.minutes:g}: expected more than 0")


@dataclass(frozen=True)
class FigureSpec:
    """How a table is drawn.

    Attributes:
        kind: "lines": scores against the rows' `x`; "intervals": a dot and an interval for each cell; "profile": the
            share of runs above every score. x_label: of the axis of `x`.
    """

    kind: Literal["lines", "intervals", "profile"] = "intervals"
    x_label: str = ""


@dataclass(frozen=True)
class TableSpec:
    """A benchmark table.

    Attributes:
        title, caption: one line, and a few sentences. columns, rows: by label, in the order in which they are shown.
        seeds: of the trainings, where a column has none of its own.
        train, evaluate: options of every training and every evaluation.
        budget: of one training. score: the column of the evaluations that is shown. higher_is_better: of the score.
        also: further columns that are shown of the same evaluations; of costs and violations, lower is better.
        selected_on_test: a setting or checkpoint was chosen by the table's own episodes; None where not stated.
        reference: the row that the others are compared with. figure: how it is drawn.
        published: numbers of others, shown below. name: of the file that it was read from.
    """

    title: str
    columns: dict[str, ColumnSpec]
    rows: dict[str, RowSpec]
    seeds: tuple[int, ...]
    budget: Budget
    caption: str = ""
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    score: str = NORMALISED
    higher_is_better: bool = True
    also: tuple[str, ...] = ()
    selected_on_test: bool | None = None
    reference: str | None = None
    figure: FigureSpec = FigureSpec()
    published: Published | None = None
    name: str = "table"

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise ValueError("title is empty: say what the table shows")
        for name, labels in (("columns", self.columns), ("rows", self.rows)):
            _check_labels(name, labels)
            _check_distinct(name, labels)
        _check_options(train=self.train, evaluate=self.evaluate)
        _check_seeds(self.seeds)
        self._check_places()
        if self.reference is not None and self.reference not in self.rows:
            raise ValueError(f"reference is {self.reference!r}: {nearest(self.reference, self.rows)}")
        self._check_figure()

    def _check_places(self) -> None:
        for label, row in self.rows.items():
            for column in row.columns or ():
                if column not in self.columns:
                    raise ValueError(
                        f"rows.{label}.columns has {column!r}, which is no column of this table: "
                        f"{nearest(column, self.columns)}"
                    )
        for column in self.columns:
            if not any(self.asks(row, column) for row in self.rows):
                raise ValueError(f"columns has {column!r}, which no row is run in: name it in a row's columns")

    def _check_figure(self) -> None:
        kind = self.figure.kind
        if kind == "profile" and not self.common_seeds:
            raise ValueError("figure.kind is 'profile': expected a seed that all columns have")
        if kind == "profile" and len(self.columns) > 1 and self.score != NORMALISED:
            raise ValueError(f"figure.kind is 'profile': scores of several columns need score: {NORMALISED}")
        if kind != "lines":
            return
        places = [(row.series, row.x) for row in self.rows.values() if row.x is not None]
        if not places:
            raise ValueError("figure.kind is 'lines': expected x: NUMBER in one row or more")
        for place in places:
            if places.count(place) > 1:
                raise ValueError(f"x is {place[1]:g} in two rows of series {place[0]!r}: give each series a name")

    @property
    def others(self) -> tuple["TableSpec", ...]:
        """The tables of `also`."""
        return tuple(
            replace(
                self,
                score=score,
                higher_is_better=not score.startswith(("cost", "violation")),
                also=(),
                reference=None,
                published=None,
                figure=FigureSpec(),
            )
            for score in self.also
        )

    @property
    def command(self) -> str:
        """The command line that makes the table."""
        return f"python benchmarks/tables.py {self.name}"

    @property
    def averaged(self) -> bool:
        """Whether scores are averaged over columns: several, in one unit, with seeds in common."""
        return len(self.columns) > 1 and self.score == NORMALISED and bool(self.common_seeds)

    @property
    def common_seeds(self) -> tuple[int, ...]:
        """Seeds of every column."""
        return tuple(sorted(set.intersection(*(set(self.seeds_of(column)) for column in self.columns))))

    def seeds_of(self, column: str) -> tuple[int, ...]:
        """Seeds of a column's trainings, in order."""
        return tuple(sorted(self.columns[column].seeds or self.seeds))

    def asks(self, row: str, column: str) -> bool:
        """Whether a row is trained and evaluated in a column."""
        columns = self.rows[row].columns
        return columns is None or column in columns

    def whole(self, row: str) -> bool:
        """Whether a row is run in every column."""
        return all(self.asks(row, column) for column in self.columns)


def read_spec(path: Path, published: Path | None = None) -> TableSpec:
    """The table that a YAML file describes; its name is the file's.

    Args:
        published: file of published tables; `published.yaml` beside the file or one folder up where none is given.

    Raises:
        UserError: one line that names the file, the key and the value at fault, and what was expected.
    """
    entries = load_yaml(path)
    try:
        known = [field.name for field in fields(TableSpec) if field.name != "name"]
        for key in entries:
            if key not in known:
                raise ValueError(f"{key} is no key: {nearest(str(key), known)}")
        spec = build(TableSpec, {key: value for key, value in entries.items() if key != "published"})
        resolved = _published(entries.get("published"), published or _beside(path), spec)
        return replace(spec, name=path.stem, published=resolved)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _published(entry: Any, file: Path, spec: TableSpec) -> Published | None:
    choice = convert(entry, Choice | None, "published")
    if choice is None:
        return None
    tables = read_published(file)
    try:
        return choose(choice, tables, tuple(spec.columns))
    except ValueError as error:
        raise ValueError(f"published.{error}; see {file}") from error


def _beside(path: Path) -> Path:
    files = [folder / "published.yaml" for folder in (path.parent, path.parent.parent)]
    return next((file for file in files if file.is_file()), files[0])


def _check_seeds(seeds: tuple[int, ...]) -> None:
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {list(seeds)}: expected one or more, from 0 up, none twice")


def _check_options(**lists: Iterable[str]) -> None:
    for name, options in lists.items():
        for option in options:
            if not _OPTION.fullmatch(option):
                raise ValueError(f"{name} has {option!r}: expected name=value")


def _check_labels(name: str, labels: Mapping[str, object]) -> None:
    if not labels:
        raise ValueError(f"{name} is empty: give one or more, as label: {{...}}")
    for label in labels:
        if not label.strip() or not label.isprintable():
            raise ValueError(f"{name} has the label {label!r}: expected one line of visible text")


def _check_distinct(name: str, entries: Mapping[str, ColumnSpec | RowSpec]) -> None:
    """Equal options would show one evaluation as two."""
    seen: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
    for label, entry in entries.items():
        twin = seen.setdefault((entry.train, entry.evaluate), label)
        if twin != label:
            raise ValueError(f"{name} has {twin!r} and {label!r} with the same options: remove one")
