"""Tables whose columns have other seeds, and whose rows are not run everywhere."""

import re

import numpy as np
import pytest

from core.errors import UserError
from core.tables import ColumnSpec, FigureSpec, RowSpec, assemble, figures, render
from tests.core.tables import check_latex, frame_of, markdown_tables, random_scores, spec_of


def two_columns(**options):
    """Rows a and b over three seeds on spread and one on tag, compared with b, with intervals over episodes on tag."""
    columns = {"spread": ColumnSpec(("task=spread",)), "tag": ColumnSpec(("task=tag",), seeds=(0,))}
    scores = {
        ("a", "spread"): {0: 10.0, 1: 20.0, 2: 30.0}, ("a", "tag"): {0: 50.0},
        ("b", "spread"): {0: 13.0, 1: 21.0, 2: 35.0}, ("b", "tag"): {0: 44.0},
    }  # fmt: skip
    spec = spec_of("ab", columns, reference="b", **options)
    frame = frame_of(spec, scores)
    frame["normalised_low"] = frame["normalised_score"] - 2.5
    frame["normalised_high"] = frame["normalised_score"] + 4.0
    return spec, frame


def test_a_column_of_one_seed_among_columns_of_three():
    table = assemble(*two_columns())
    spread, tag = table.cell("a", "spread"), table.cell("a", "tag")
    assert (spread.seeds, spread.missing, spread.estimate.value, spread.best) == ((0, 1, 2), (), 20.0, True)
    assert (tag.seeds, tag.missing, tag.estimate.value, tag.best) == ((0,), (), 50.0, False)
    assert (np.isfinite(spread.estimate.high), np.isinf(tag.estimate.high)) == (True, True)
    assert (spread.over_episodes, tag.over_episodes) == (None, (47.5, 54.0))
    assert [(one.row, one.seeds, one.mean.value, one.middle.value, one.best) for one in table.overall] == [
        ("a", (0,), 30.0, 30.0, False),  # (10 + 50) / 2
        ("b", (0,), 28.5, 28.5, False),  # (13 + 44) / 2
    ]
    on_spread, on_tag, overall = table.contrasts
    half = 4.30265 * 2 / 3**0.5  # differences of -3, -1 and -5, whose deviation is 2
    estimate = on_spread.comparison.difference
    assert [estimate.value, estimate.low, estimate.high] == pytest.approx([-3, -3 - half, -3 + half], abs=1e-4)
    # All of one sign, of 8 changes of sign; the single difference on tag is no test to correct for.
    assert (on_spread.comparison.p_value, on_spread.comparison.p_holm) == (0.25, 0.25)
    assert (on_tag.seeds, on_tag.comparison.difference.value, on_tag.comparison.p_value) == ((0,), 6.0, 1.0)
    assert (overall.seeds, overall.comparison.difference.value) == ((0,), 1.5)
    checks = {check.name: check for check in table.checks}
    assert checks["nothing missing"].found == "8 of 8 evaluations"
    assert checks["seeds"].found == "1 seed"


def test_intervals_over_episodes_are_of_the_score_that_is_shown():
    spec, frame = two_columns()
    for unknown in (np.nan, -np.inf):
        frame["normalised_low"] = unknown
        assert assemble(spec, frame).cell("a", "tag").over_episodes is None
    assert assemble(spec, frame.drop(columns="normalised_low")).cell("a", "tag").over_episodes is None
    returns = assemble(*two_columns(score="return_mean")).cell("a", "tag")
    assert (returns.scores, returns.over_episodes) == ((-8.0,), (-8.5, -7.5))
    assert assemble(*two_columns(score="cost_mean")).cell("a", "tag").over_episodes is None


def test_columns_without_a_common_seed_have_no_mean():
    columns = {"expert": ColumnSpec(("dataset=expert",)), "mixed": ColumnSpec(("dataset=mixed",), seeds=(7, 8))}
    spec = spec_of("ab", columns, reference="b")
    table = assemble(spec, frame_of(spec, random_scores(spec)))
    assert (table.overall, [one.column for one in table.contrasts]) == ((), ["expert", "mixed"])
    assert table.cell("a", "mixed").seeds == (7, 8)


LIMITED = {
    "a": RowSpec(("algo=a",)),
    "b": RowSpec(("algo=b",), columns=("mixed",)),
    "c": RowSpec(("algo=c",)),
}


def test_a_row_that_is_not_run_in_every_column():
    spec = spec_of(LIMITED, reference="a")
    scores = {
        ("a", "expert"): {0: 1.0, 1: 2.0, 2: 3.0}, ("a", "mixed"): {0: 10.0, 1: 20.0, 2: 30.0},
        ("b", "mixed"): {0: 11.0, 1: 22.0, 2: 33.0},
        ("c", "expert"): {0: 2.0, 1: 3.0, 2: 7.0}, ("c", "mixed"): {0: 9.0, 1: 18.0, 2: 27.0},
    }  # fmt: skip
    table = assemble(spec, frame_of(spec, scores))
    left_out = table.cell("b", "expert")
    assert (left_out.asked, left_out.seeds, left_out.missing, left_out.estimate) == (False, (), (), None)
    assert [cell.asked for cell in table.cells] == [True, True, False, True, True, True]
    assert table.cell("b", "mixed").estimate.value == 22.0
    assert [(one.row, one.mean.value) for one in table.overall] == [("a", 11.0), ("c", 11.0)]
    differences = [(one.row, one.column, one.comparison.difference.value) for one in table.contrasts]
    assert differences == [("c", "expert", 2.0), ("b", "mixed", 2.0), ("c", "mixed", -2.0), ("c", None, 0.0)]
    # Three tests of single columns, each of 2 in 8: Holm's correction takes the least three times.
    assert [one.comparison.p_holm for one in table.contrasts[:3]] == [0.75, 0.75, 0.75]
    checks = {check.name: check for check in table.checks}
    assert (checks["nothing missing"].met, checks["nothing missing"].found) == (True, "15 of 15 evaluations")
    assert checks["seeds"].found == "3 seeds"
    assert checks["same episodes"].met
    assert not checks["common data"].met
    assert [effort.runs for effort in table.efforts] == [6, 3, 6]


def test_a_reference_that_is_not_run_in_every_column():
    spec = spec_of(LIMITED, reference="b")
    table = assemble(spec, frame_of(spec, random_scores(spec)))
    assert [(one.row, one.column) for one in table.contrasts] == [("a", "mixed"), ("c", "mixed")]


def test_evaluations_that_no_cell_asks_for_are_refused():
    spec = spec_of(LIMITED)
    frame = frame_of(spec_of("abc"), random_scores(spec_of("abc")))
    with pytest.raises(UserError, match="row 'b', column 'expert', seed 0: the row's columns leave this one out"):
        assemble(spec, frame)
    spec, frame = two_columns()
    frame.loc[frame["column"] == "tag", "training_seed"] = 1
    with pytest.raises(UserError, match="row 'a', column 'tag', seed 1: the column has the seeds 0; add this one"):
        assemble(spec, frame)


# As it is written


def uneven(**options):
    """Three seeds on spread and one on tag, where row b is not run; intervals over episodes of width 6.5."""
    columns = {"spread": ColumnSpec(("task=spread",)), "tag": ColumnSpec(("task=tag",), seeds=(0,))}
    rows = {
        "a": RowSpec(("algo=a",), x=0),
        "b": RowSpec(("algo=b",), columns=("spread",), x=1),
        "c": RowSpec(("algo=c",)),
    }
    scores = {
        ("a", "spread"): {0: 10.0, 1: 20.0, 2: 30.0}, ("a", "tag"): {0: 50.0},
        ("b", "spread"): {0: 11.0, 1: 22.0, 2: 33.0},
        ("c", "spread"): {0: 13.0, 1: 21.0, 2: 35.0}, ("c", "tag"): {0: 44.0},
    }  # fmt: skip
    spec = spec_of(rows, columns, reference="a", **options)
    frame = frame_of(spec, scores)
    frame["normalised_low"], frame["normalised_high"] = frame["normalised_score"] - 2.5, frame["normalised_score"] + 4
    return assemble(spec, frame)


def test_what_is_not_run_is_a_dash_and_one_seed_has_its_interval_over_episodes():
    table = uneven()
    text = render.markdown(table)
    main, comparisons, *_ = markdown_tables(text)
    lines = [[entry for entry, _ in line] for line in main[1:]]
    assert [line[2] for line in lines] == [
        "50.0 (47.5 to 54.0 over episodes), 1 seed", "–", "44.0 (41.5 to 48.0 over episodes), 1 seed",  # noqa: RUF001
    ]  # fmt: skip
    assert [line[3:] for line in lines] == [["30.0 (1 seed)"] * 2, ["", ""], ["28.5 (1 seed)"] * 2]
    assert [line[1].split(" ")[0] for line in lines] == ["20.0", "22.0", "23.0"]
    assert [(line[0][0], line[1][0], line[2][0].split(" ")[0]) for line in comparisons[1:]] == [
        ("spread", "b", "+2.0"), ("spread", "c", "+3.0"), ("tag", "c", "-6.0"), ("all columns", "c", "-1.5"),
    ]  # fmt: skip
    assert [entry for entry, _ in comparisons[3][3:]] == ["–"] * 3  # noqa: RUF001
    assert "Means over 3 seeds (0, 1, 2) in spread; 1 seed (0) in tag, each a training" in text
    assert "of the seeds that every column has (0), independent" in text
    assert "–: not run. Such a row has no mean over all columns." in text  # noqa: RUF001
    assert "Over episodes: the 95% interval of Student's t over the episodes of one training" in text
    assert "One common seed has no test" in text
    latex = render.latex(table)
    check_latex(latex)
    assert re.search(r"^b & \S+ \{\\scriptsize \([^)]+\)\} & \\textendash\{\} &  &  \\\\$", latex, re.MULTILINE)
    assert r"50.0 {\scriptsize (47.5 to 54.0 over episodes), 1 seed}" in latex
    cells = {(cell["row"], cell["column"]): cell for cell in render.as_json(table)["cells"]}
    assert (cells["b", "tag"]["asked"], cells["b", "tag"]["estimate"], cells["b", "tag"]["scores"]) == (False, None, [])
    assert (cells["a", "tag"]["asked"], cells["a", "tag"]["over_episodes"]) == (True, [47.5, 54.0])


def drawn(monkeypatch, table):
    """The figure of a table before it is bytes."""
    seen, canvas = [], figures.FigureCanvasAgg
    monkeypatch.setattr(figures, "FigureCanvasAgg", lambda figure: seen.append(figure) or canvas(figure))
    assert figures.png(table)
    return seen[0]


def drawn_lines(axes):
    """Ends of the lines of two points, and their widths."""
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
    return [(line.get_xydata().tolist(), line.get_linewidth()) for line in lines]


def test_the_figures_of_such_a_table(monkeypatch):
    panels = drawn(monkeypatch, uneven())
    assert [[text.get_text() for text in axes.texts] for axes in panels.axes] == [[], ["–"]]  # noqa: RUF001
    title = panels.get_suptitle().replace("\n", " ")
    assert "1 to 3 seeds;" in title
    assert title.endswith("; thin: over the episodes of one seed; –: not run")  # noqa: RUF001
    assert drawn_lines(panels.axes[1]) == [([[47.5, 0], [54, 0]], 0.8), ([[41.5, 2], [48, 2]], 0.8)]
    lines = drawn(monkeypatch, uneven(figure=FigureSpec("lines")))
    assert ([[0, 47.5], [0, 54]], 0.8) in drawn_lines(lines.axes[0])
    profile = drawn(monkeypatch, uneven(figure=FigureSpec("profile")))
    (legend,) = profile.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b (–)", "c"]  # noqa: RUF001
    assert len(profile.axes[0].lines) == 2
    assert "–: not run in every column" in profile.get_suptitle().replace("\n", " ")  # noqa: RUF001
