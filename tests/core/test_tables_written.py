import json
import os
import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from core.errors import UserError
from core.tables import FigureSpec, assemble, figures, render, write
from tests.core.tables import (
    AWKWARD,
    awkward,
    awkward_spec,
    check_latex,
    every,
    frame_of,
    markdown_tables,
    spec_of,
    text_of,
)

# Markdown


def test_markdown_shows_awkward_labels_as_they_are():
    table = awkward()
    text = render.markdown(table)
    main, comparisons, efforts, published = markdown_tables(text)
    assert [cell for cell, _ in main[0]] == ["normalised score", "a|b", "100%_$", "mean", "IQM"]
    assert [line[0][0] for line in main[1:]] == list(AWKWARD)
    assert [line[1][0] for line in comparisons[1:]] == list(AWKWARD[1:]) * 3
    assert [line[0][0] for line in efforts[1:]] == list(AWKWARD)
    assert [line[0][0] for line in published[1:]] == ["BC & co", "best|ever (second-hand)"]
    inlines = [token for token in MarkdownIt("commonmark").enable("table").parse(text) if token.type == "inline"]
    assert text_of(inlines[0])[0] == table.spec.title
    assert text_of(inlines[1])[0] == table.spec.caption


def test_markdown_numbers_and_marks():
    table = awkward()
    main = markdown_tables(render.markdown(table))[0]
    for line in main[1:]:
        for column, (entry, bold) in zip(table.spec.columns, line[1:]):
            cell = table.cell(line[0][0], column)
            assert bold == cell.best
            if cell.estimate is None:
                assert entry == "missing"
            elif len(cell.seeds) == 1:
                assert entry == f"{cell.estimate.value:.1f} (1 of 3 seeds)"
            else:
                interval = f"({cell.estimate.low:.1f} to {cell.estimate.high:.1f})"
                seeds = ", 2 of 3 seeds" if cell.missing else ""
                assert entry == f"{cell.estimate.value:.1f} {interval}{seeds}"


def test_every_format_has_the_checklist_the_seeds_the_budget_and_the_command():
    table = awkward()
    for text in (render.markdown(table), render.latex(table)):
        for check in table.checks:
            assert re.search(f"(- |item ){'' if check.met else 'not '}met: {check.name}:", text)
        assert "3 seeds (0, 1, 2)" in text
        assert "256 episodes from seed 3000000" in text
        assert "1 CPU core and 20 minutes" in text
        assert re.search(r"python benchmarks/tables.py odd\\?_name", text)
    entries = render.as_json(table)
    assert [one["name"] for one in entries["protocol"]] == [check.name for check in table.checks]
    assert entries["command"] == "python benchmarks/tables.py odd_name"


def test_no_infinity_is_ever_printed():
    spec = spec_of("ab", seeds=[7], reference="b", figure=FigureSpec("profile"))
    table = every(spec)
    main, comparisons, *_ = markdown_tables(render.markdown(table))
    assert main[1][1][0] == f"{table.cells[0].estimate.value:.1f} (1 seed)"
    assert comparisons[1][2][0].endswith("(1 seed)")
    assert [cell for cell, _ in comparisons[1][3:]] == ["–"] * 3  # noqa: RUF001
    for text in (render.markdown(table), render.latex(table), json.dumps(render.as_json(table))):
        assert not re.search(r"\binf|Infinity|\bnan\b|NaN", text)


def test_numbers_in_other_units_have_four_digits_and_no_negative_zero():
    spec = spec_of("ab", columns=("expert",), score="return_mean", figure=FigureSpec("intervals"))
    values = {"a": [-1234.5, -1230.0, -1228.25], "b": [-0.04, 0.02, 0.01]}
    frame = frame_of(spec, {(row, "expert"): dict(enumerate(values[row])) for row in "ab"})
    frame["return_mean"] = values["a"] + values["b"]
    main = markdown_tables(render.markdown(assemble(spec, frame)))[0]
    assert main[1][1][0].startswith("-1,231 (")
    assert main[2][1][0].startswith("0 (")
    assert main[2][1][0].endswith(" to 0)")


def test_a_score_that_is_not_normalised_is_not_averaged():
    spec = spec_of("ab", score="return_mean")
    assert every(spec).overall == ()
    assert [cell for cell, _ in markdown_tables(render.markdown(every(spec)))[0][0]] == [
        "return mean",
        "expert",
        "mixed",
    ]


# What others have published


def test_further_scores_stand_below_the_first():
    spec = spec_of(["a", "b"], columns=("expert",), also=("cost_mean",))
    scores = {("a", "expert"): {0: 1.0, 1: 2.0, 2: 3.0}, ("b", "expert"): {0: 2.0, 1: 3.0, 2: 4.0}}
    frame = frame_of(spec, scores)
    frame["cost_mean"] = [1.0, 1.1, 1.2, 9.0, 9.5, 9.9]
    table = assemble(spec, frame)
    main, costs, *_ = markdown_tables(render.markdown(table))
    assert [line[1][0].split()[0] for line in main[1:]] == ["2.0", "3.0"]
    assert costs[0][0][0] == "cost mean, lower is better"
    assert [line[1][0].split()[0] for line in costs[1:]] == ["1.100", "9.467"]
    (cells,) = render.as_json(table)["also"].values()
    assert [cell["best"] for cell in cells] == [True, False]


def test_published_numbers_stand_apart():
    table = awkward()
    without = awkward_spec()
    assert table.cells == replace(table, spec=without).cells
    text = render.markdown(table)
    ours, theirs = text.split("## Published numbers, not ours")
    for number in ("999.25", "998", "997.5"):
        assert number not in ours
        assert number in theirs
    assert "**" not in theirs
    assert "arXiv 2305.17330" in theirs
    assert "not comparable: other rules" in theirs
    assert "–: not published, or not known to us." in theirs  # noqa: RUF001
    assert [entry for entry, _ in markdown_tables(text)[3][1]] == ["BC & co", "999.25", "–"]  # noqa: RUF001
    assert ours == render.markdown(replace(table, spec=without)) + "\n"
    latex, latex_theirs = render.latex(table).split(r"\caption{Published numbers, not ours")
    assert "999.25" not in latex
    assert r"\textbf" not in latex_theirs
    entries = render.as_json(table)
    assert entries["published_by_others"]["table"]["rows"]["best|ever"]["scores"] == [998.0, -997.5]
    assert "999.25" not in json.dumps({key: value for key, value in entries.items() if key != "published_by_others"})


# LaTeX


def test_latex_is_well_formed():
    text = render.latex(awkward())
    check_latex(text)
    assert r"50\% of \$x\textasciicircum{}" not in text
    assert r"50\% of \$x\_1\$ \& \textbackslash{}more \textbar{} less." in text
    assert r"a\textbar{}b\_c{*}d\%e\&f\#g &" in text
    assert r"\ensuremath{\lambda} \ensuremath{\le} 1" in text
    assert "\n{*}starts{*} &" in text
    assert text.count(r"\begin{table}") == text.count(r"\caption") == 4


def test_latex_of_many_rows_and_columns():
    many = spec_of(
        [f"row_{i}" for i in range(30)], columns=[f"c{i}" for i in range(6)], seeds=range(2), reference="row_0"
    )
    text = render.latex(every(many))
    check_latex(text)
    assert text.count(r"\begin{longtable}") == 1  # 7 times 29 comparisons
    assert text.count(r"\resizebox{\textwidth}{!}{%") == 2
    main, comparisons, efforts = markdown_tables(render.markdown(every(many)))
    assert (len(main), len(comparisons), len(efforts)) == (31, 1 + 7 * 29, 31)


# JSON


def test_json_is_strict_and_complete():
    table = awkward()
    text = json.dumps(render.as_json(table, {"torch": "2"}), allow_nan=False)

    def refuse(constant):
        raise AssertionError(constant)

    entries = json.loads(text, parse_constant=refuse)
    assert entries["versions"] == {"torch": "2"}
    assert len(entries["cells"]) == 12
    assert len(entries["evaluations"]) == 36 - 3 - 1 - 2
    for cell, one in zip(entries["cells"], table.cells, strict=True):
        assert (cell["row"], cell["column"], cell["best"]) == (one.row, one.column, one.best)
        assert cell["seeds"] == list(one.seeds)
        assert cell["scores"] == list(one.scores)
        if len(one.seeds) > 1:
            assert (cell["estimate"]["low"], cell["estimate"]["high"]) == (one.estimate.low, one.estimate.high)
        elif one.seeds:
            assert cell["estimate"]["low"] is None
    assert entries["table"]["rows"][AWKWARD[0]]["train"] == ["algo=0"]
    assert entries["table"]["budget"] == {"cpus": 1, "minutes": 20}
    assert {one["column"] for one in entries["comparisons"]} == {"a|b", "100%_$", None}
    assert entries["evaluations"][0]["guidance_scale"] is None


# Files


def test_four_files_the_same_bytes(tmp_path):
    table = awkward()
    paths = write(table, tmp_path / "a", "name", {"torch": "2"})
    assert [path.name for path in paths] == ["name.md", "name.tex", "name.json", "name.png"]
    again = write(awkward(), tmp_path / "b", "name", {"torch": "2"})
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert "](<name.png>)" in paths[0].read_text(encoding="utf-8")
    assert write(table, tmp_path / "c")[0].name == "odd_name.md"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in paths)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file/sub"):
        write(awkward(), tmp_path / "file" / "sub")
    with pytest.raises(UserError, match=r"cannot write .*file/a\.png: File exists; free the disk"):
        figures.draw(awkward(), tmp_path / "file" / "a.png")


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    table = awkward()
    before = {path: path.read_bytes() for path in write(table, tmp_path)}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; free the disk") as caught:
        write(table, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"odd_name\.png: No space left on device"):
        figures.draw(table, tmp_path / "odd_name.png")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
