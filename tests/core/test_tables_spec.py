import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from core.tables import ColumnSpec, RowSpec, read_published, read_spec
from tests.core.tables import spec_of

ROOT = Path(__file__).parents[2]

TABLE = """
title: What guidance buys
columns:
  expert: {train: [dataset=expert], collect: [quality=expert]}
  mixed: {train: [dataset=mixed]}
rows:
  "MADiff, scale 0": {train: [algo=madiff], evaluate: [guidance.scale=0], tuning_trials: 15, x: 0}
  "MADiff, scale 1.4": {train: [algo=madiff], evaluate: [guidance.scale=1.4], tuning_trials: 15, x: 1.4}
  cloning: {train: [algo=bc], tuning_trials: 4, cloning: true}
seeds: [0, 1, 2]
evaluate: [episodes=256]
budget: {cpus: 1, minutes: 20}
selected_on_test: false
reference: cloning
published: {table: mpe, rows: [BC, OMAR], columns: {expert: spread expert}, note: other rules}
figure: {kind: lines, x_label: guidance scale}
"""


def written(tmp_path, *changes, text=TABLE):
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "guidance.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def read(path):
    return read_spec(path, ROOT / "benchmarks" / "published.yaml")


# The specification


def test_a_specification_is_read_whole(tmp_path):
    spec = read(written(tmp_path))
    assert (spec.name, spec.command) == ("guidance", "python benchmarks/tables.py guidance")
    assert list(spec.columns) == ["expert", "mixed"]
    assert spec.columns["expert"].collect == ("quality=expert",)
    assert spec.columns["mixed"].collect is None
    assert spec.rows["MADiff, scale 1.4"] == RowSpec(("algo=madiff",), ("guidance.scale=1.4",), 15, False, 1.4)
    assert (spec.seeds, spec.budget.minutes, spec.selected_on_test) == ((0, 1, 2), 20.0, False)
    assert (spec.score, spec.higher_is_better, spec.figure.kind) == ("normalised_score", True, "lines")
    assert spec.published.table.columns == ("spread expert",)
    assert {name: row.scores for name, row in spec.published.table.rows.items()} == {"BC": (35.0,), "OMAR": (114.9,)}
    with pytest.raises(FrozenInstanceError):
        spec.title = "another"


def test_published_numbers_are_found_beside_the_tables_or_one_folder_up(tmp_path):
    path = written(tmp_path)
    text = (ROOT / "benchmarks" / "published.yaml").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"published\.yaml cannot be read: No such file or directory"):
        read_spec(path)
    (tmp_path / "published.yaml").write_text(text, encoding="utf-8")
    assert read_spec(path) == read(path)
    (tmp_path / "tables").mkdir()
    assert read_spec(written(tmp_path / "tables")) == read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds:", "seed:"), "seed is no key: did you mean 'seeds'?"),
        (("cpus: 1,", "cpu: 1,"), "budget.cpu is no key: did you mean 'cpus'?"),
        (("tuning_trials: 4", "trials: 4"), "rows.cloning.trials is no key: did you mean 'tuning_trials'?"),
        (("title:", "name: x\ntitle:"), "name is no key"),
        (("title: What guidance buys\n", ""), "title is missing: it has no default"),
        (("reference: cloning", "reference: clonin"), "reference is 'clonin': did you mean 'cloning'?"),
        (("seeds: [0, 1, 2]", "seeds: [0, 1, 0]"), "seeds are [0, 1, 0]: expected one or more, from 0 up, none twice"),
        (("seeds: [0, 1, 2]", "seeds: []"), "seeds are []: expected one or more"),
        (("seeds: [0, 1, 2]", "seeds: [0, 1.5]"), "seeds[1] is 1.5: expected a whole number"),
        (("seeds: [0, 1, 2]", "seeds: 3"), "seeds is 3: expected a list"),
        (("seeds: [0, 1, 2]", "seeds: [true]"), "seeds[0] is True: expected a whole number"),
        (("minutes: 20", "minutes: ten"), "budget.minutes is 'ten': expected a finite number"),
        (("minutes: 20", "minutes: 0"), "budget.minutes is 0: expected more than 0"),
        (("cpus: 1", "cpus: 0"), "budget.cpus is 0: expected 1 or more"),
        (("budget: {cpus: 1, minutes: 20}", "budget: 20"), "budget is 20: expected a mapping with cpus, minutes"),
        (("x: 1.4", "x: .nan"), "rows.MADiff, scale 1.4.x is nan: expected a finite number"),
        (("cloning: true", "cloning: 1"), "rows.cloning.cloning is 1: expected true or false"),
        (("kind: lines", "kind: line"), "figure.kind is 'line': did you mean 'lines'?"),
        (("[algo=bc]", "[algo bc]"), "rows.cloning.train has 'algo bc': expected name=value"),
        (("[algo=bc]", "[algo=bc, 1.2]"), "rows.cloning.train[1] is 1.2: expected text"),
        (("[guidance.scale=1.4]", "[guidance.scale=0]"), "'MADiff, scale 1.4' with the same options: remove one"),
        (("x: 1.4", "x: 0"), "x is 0 in two rows of series '': give each series a name"),
        (("tuning_trials: 4", "tuning_trials: -4"), "rows.cloning.tuning_trials is -4: expected 0 or more"),
        (("  cloning:", "  no:"), "rows has the label False: expected text, put it in quotes"),
        (("  cloning:", "  mixed:\n  cloning:"), "rows.mixed is None: expected a mapping with train"),
        (("  cloning:", '  "MADiff, scale 0":'), "line 9: 'MADiff, scale 0' is given twice"),
        (("title: What", 'title: ""  #'), "title is empty"),
        (("  cloning:", '  "two\\nlines":'), "rows has the label 'two\\nlines': expected one line of visible text"),
        (("seeds: [0, 1, 2]", "seeds: [0, 1, 2"), "mend the YAML"),
        (("table: mpe", "table: mpee"), "published.table is 'mpee': did you mean 'mpe'?"),
        (("[BC, OMAR]", "[BC, OMARS]"), "published.rows has 'OMARS', which is not in 'mpe': did you mean 'OMAR'?"),
        (("{expert: spread", "{experts: spread"), "published.columns has 'experts', which is no column of this table"),
        (
            ("spread expert", "spred expert"),
            "published.columns.expert is 'spred expert': did you mean 'spread expert'?",
        ),
        (("note: other rules", 'note: ""'), "published.note is empty: say why"),
        ((", note: other rules", ""), "published.note is missing"),
        (("reference: cloning", "reference: cloning\nscore: return_mean\nfigure: {kind: profile}"), "is given twice"),
        (("[dataset=mixed]", "[dataset=mixed], seeds: []"), "columns.mixed.seeds are []: expected one or more, from 0"),
        (("[dataset=mixed]", "[dataset=mixed], seeds: [1, 1]"), "columns.mixed.seeds are [1, 1]: expected one or more"),
        (("[dataset=mixed]", "[dataset=mixed], seeds: 1"), "columns.mixed.seeds is 1: expected a list"),
        (
            ("cloning: true", "columns: [expert, mixd]"),
            "rows.cloning.columns has 'mixd', which is no column of this table: did you mean 'mixed'?",
        ),
        (("cloning: true", "columns: []"), "rows.cloning.columns are []: name one or more, none twice"),
        (("cloning: true", "columns: [mixed, mixed]"), "rows.cloning.columns are ['mixed', 'mixed']: name one or more"),
        (("cloning: true", "columns: mixed"), "rows.cloning.columns is 'mixed': expected a list"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file_and_the_value(tmp_path, change, message):
    path = written(tmp_path, change)
    with pytest.raises(UserError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_table(tmp_path):
    for text, held in (("", "None"), ("- a\n- b\n", r"\['a', 'b'\]")):
        with pytest.raises(UserError, match=rf"guidance\.yaml holds {held}: expected a mapping"):
            read(written(tmp_path, text=text))
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read(tmp_path)
    (tmp_path / "guidance.yaml").write_bytes(b"title: \xff\xfe")
    with pytest.raises(UserError, match="is not YAML in UTF-8"):
        read(tmp_path / "guidance.yaml")


@pytest.mark.parametrize("name", ["rows", "columns"])
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{}", "is empty: give one or more"),
        ("[a]", "is ['a']: expected a mapping from labels"),
        ("", "is None: expected"),
    ],
)
def test_tables_without_rows_or_columns(tmp_path, name, entry, message):
    text = re.sub(rf"^{name}:\n(  .*\n)+", f"{name}: {entry}\n", TABLE, flags=re.MULTILINE)
    with pytest.raises(UserError) as caught:
        read(written(tmp_path, text=text))
    assert f"guidance.yaml: {name} {message}" in str(caught.value)


def test_empty_rows_and_mixed_units_are_refused():
    with pytest.raises(ValueError, match=r"rows is empty: give one or more"):
        spec_of({})
    with pytest.raises(ValueError, match=r"profile.*several columns need score: normalised_score"):
        spec_of(["a"], score="return_mean", figure=replace(spec_of(["a"]).figure, kind="profile"))
    with pytest.raises(ValueError, match=r"lines.*expected x"):
        spec_of(["a"], figure=replace(spec_of(["a"]).figure, kind="lines"))


def test_seeds_of_a_column_and_columns_of_a_row(tmp_path):
    seeds, columns = ("[dataset=mixed]", "[dataset=mixed], seeds: [3, 1]"), ("cloning: true", "columns: [mixed]")
    spec = read(written(tmp_path, seeds, columns))
    assert (spec.seeds_of("expert"), spec.seeds_of("mixed"), spec.common_seeds) == ((0, 1, 2), (1, 3), (1,))
    assert [spec.asks("cloning", column) for column in spec.columns] == [False, True]
    assert [spec.whole(row) for row in spec.rows] == [True, True, False]


def test_columns_without_a_row_and_profiles_without_a_common_seed():
    only = {row: RowSpec((f"algo={row}",), columns=("expert",)) for row in "ab"}
    with pytest.raises(ValueError, match="columns has 'mixed', which no row is run in: name it in a row's columns"):
        spec_of(only)
    apart = {"expert": ColumnSpec(("dataset=expert",)), "mixed": ColumnSpec(("dataset=mixed",), seeds=(7,))}
    assert not spec_of("ab", columns=apart).averaged
    with pytest.raises(ValueError, match=r"figure\.kind is 'profile': expected a seed that all columns have"):
        spec_of("ab", columns=apart, figure=replace(spec_of("a").figure, kind="profile"))


# What others have published


def test_the_published_numbers():
    tables = read_published(ROOT / "benchmarks" / "published.yaml")
    assert set(tables) == {"mpe", "mamujoco", "d4rl", "nba", "eth_ucy", "safe_strict", "safe_three_limits"}
    mpe = tables["mpe"]
    assert (len(mpe.columns), len(mpe.rows), mpe.arxiv) == (12, 11, "2305.17330")
    assert {name for name, row in mpe.rows.items() if row.second_hand} == {"DOM2", "CFCQL", "OMSD"}
    assert mpe.rows["MADiff-C"].scores[mpe.columns.index("world medium")] == 158.2
    assert mpe.rows["CFCQL"].scores[mpe.columns.index("tag expert")] is None
    assert mpe.rows["OMSD"].scores[mpe.columns.index("tag random")] == 133.9
    d4rl = tables["d4rl"].rows["Diffusion-QL"].scores
    assert np.mean(d4rl[:9]) == pytest.approx(d4rl[9], abs=0.1)
    assert tables["nba"].second_hand
    assert tables["safe_strict"].rows["TREBI"].scores == (0.28, 1.36, 0.56, 2.45)
    for table in tables.values():
        assert table.source
        assert table.unit
        assert table.protocol


def test_published_columns_are_found_by_the_names_of_ours(tmp_path):
    spread = ("  expert:", "  tag expert: {train: [task=mpe/tag]}\n  spread expert:")
    lacking = ("  mixed:", "  spread multimodal:")
    ours = ("tag expert", "spread expert", "spread multimodal")
    unnamed = (", columns: {expert: spread expert}", "")
    published = read(written(tmp_path, spread, lacking, unnamed, ("BC, OMAR", "MADiff-D, CFCQL"))).published
    assert published.table.columns == published.beside == ours
    scores = {name: row.scores for name, row in published.table.rows.items()}
    assert scores == {"MADiff-D": (120.9, 95.0, None), "CFCQL": (None, 112, None)}
    published = read(written(tmp_path, unnamed)).published  # none of these names is published: all that is
    assert (len(published.table.columns), published.beside) == (12, ())


def test_a_published_table_with_a_number_too_few_is_refused(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text("t: {title: t, source: s, unit: u, protocol: p, columns: [a, b], rows: {m: {scores: [1]}}}")
    with pytest.raises(UserError, match=r"published\.yaml: t\.rows\.m\.scores has 1 numbers: expected 2"):
        read_published(path)
