import itertools
import json
import os
import re
import struct
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from core.errors import UserError
from core.tables import FigureSpec, Published, PublishedRow, PublishedTable, RowSpec, assemble, figures, render, write
from tests.core.tables import AWKWARD, awkward_spec, frame_of, random_scores, spec_of

PUBLISHED = Published(
    "mpe",
    PublishedTable(
        title="MPE | its & table",
        source="a paper_1",
        unit="normalised score",
        protocol="their rules",
        columns=("spread expert", "spread_mixed"),
        rows={"BC & co": PublishedRow((999.25, None)), "best|ever": PublishedRow((998.0, -997.5), second_hand=True)},
        arxiv="2305.17330",
        notes=("50% of it.",),
    ),
    note="not comparable: other rules",
)


def awkward(**options):
    spec = awkward_spec(published=PUBLISHED, **options)
    scores = random_scores(spec)
    del scores[AWKWARD[1], "a|b"], scores[AWKWARD[2], "a|b"][0]
    for seed in (0, 1):
        del scores[AWKWARD[3], "a|b"][seed]
    return assemble(spec, frame_of(spec, scores))


def every(spec, **entries):
    return assemble(spec, frame_of(spec, random_scores(spec), **entries))


# Markdown


def text_of(token):
    """What a reader sees of an inline token, and whether any of it is bold."""
    parts = [child.content for child in token.children]
    assert {child.type for child in token.children} <= {"text", "text_special", "strong_open", "strong_close"}
    return "".join(parts), any(child.type == "strong_open" for child in token.children)


def markdown_tables(text):
    """Tables as lists of lines of (text, bold), read by another program."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    tables = []
    for before, token in itertools.pairwise(tokens):
        if before.type == "table_open":
            tables.append([])
        if before.type == "tr_open":
            tables[-1].append([])
        if before.type in ("th_open", "td_open"):
            tables[-1][-1].append(text_of(token) if token.children else ("", False))
    return tables


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
    assert ours == render.markdown(replace(table, spec=without)) + "\n"
    latex, latex_theirs = render.latex(table).split(r"\caption{Published numbers, not ours")
    assert "999.25" not in latex
    assert r"\textbf" not in latex_theirs
    entries = render.as_json(table)
    assert entries["published_by_others"]["table"]["rows"]["best|ever"]["scores"] == [998.0, -997.5]
    assert "999.25" not in json.dumps({key: value for key, value in entries.items() if key != "published_by_others"})


# LaTeX


def check_latex(text):
    """Braces and environments are closed in order, and every line of a table has as many entries as its columns."""
    assert text.isascii() or all(ord(sign) < 0x250 for sign in text)
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    body = "\n".join(lines)
    stripped = re.sub(r"\\[{}$&#_%\\]", "", body)
    depth, environments = 0, []
    for sign in re.findall(r"\\begin\{\w+\}|\\end\{\w+\}|[{}]", stripped):
        if sign.startswith(r"\begin"):
            environments.append((sign[7:-1], depth))
        elif sign.startswith(r"\end"):
            assert environments.pop() == (sign[5:-1], depth)
        else:
            depth += 1 if sign == "{" else -1
            assert depth >= 0
    assert (depth, environments) == (0, [])
    assert not re.search(r"[$#^~_\"`<>|]", stripped)
    assert set(re.findall(r"(?<!\{!\}\{)%", stripped)) == set()
    assert body.count(r"\toprule") == body.count(r"\midrule") == body.count(r"\bottomrule")
    columns = 0
    for line in lines:
        begun = re.match(r"\\begin\{(?:tabular|longtable)\}\{([lr]+)\}$", line)
        columns = len(begun[1]) if begun else columns
        if line.endswith(r" \\"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
        elif not line.endswith(r"\\"):
            assert not re.search(r"(?<!\\)&", line)
    assert len(re.findall(r"\\label\{([A-Za-z0-9:-]+)\}", body)) == len(set(re.findall(r"\\label\{([^}]*)\}", body)))


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


# Figures


LINES = {
    "scale 0": RowSpec(("algo=a",), ("guidance.scale=0",), x=0.0),
    "scale 1": RowSpec(("algo=a",), ("guidance.scale=1",), x=1.0),
    "scale 2, of another": RowSpec(("algo=b",), ("guidance.scale=2",), x=2.0, series="another"),
    "cloning": RowSpec(("algo=bc",)),
}


def chunks(data):
    """Names of a PNG's chunks, and its size in pixels."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    names, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        names.append(data[place + 4 : place + 8].decode())
        place += 12 + length
    return names, struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("kind", ["lines", "intervals", "profile"])
@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_figures_are_the_same_bytes_without_date_or_version(tmp_path, kind, seeds):
    spec = spec_of(LINES, seeds=seeds, figure=FigureSpec(kind, "guidance scale"))
    table = every(spec)
    figures.draw(table, tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    names, (width, height) = chunks(data)
    assert set(names) <= {"IHDR", "pHYs", "IDAT", "IEND"}
    assert width >= 1000
    assert height >= 500
    assert figures.png(every(spec)) == data


@pytest.mark.parametrize("kind", ["intervals", "profile"])
def test_figures_of_awkward_missing_equal_and_many_rows(kind):
    figure = FigureSpec(kind)
    assert figures.png(awkward(figure=figure))
    spec = spec_of("ab", figure=figure)
    equal = {(row, column): dict.fromkeys(spec.seeds, 0.0) for row in "ab" for column in spec.columns}
    assert figures.png(assemble(spec, frame_of(spec, equal)))
    assert figures.png(assemble(spec, frame_of(spec, equal).iloc[:0]))
    many = spec_of([f"row {i}" for i in range(30)], columns="abcd", seeds=range(2), figure=figure)
    assert chunks(figures.png(every(many)))[1][1] > 800


def test_a_figure_of_lines_with_missing_cells():
    spec = spec_of(LINES, figure=FigureSpec("lines", "scale"))
    scores = random_scores(spec)
    for label in ("scale 1", "cloning"):
        del scores[label, "mixed"]
    assert figures.png(assemble(spec, frame_of(spec, scores)))
    assert figures.png(assemble(spec, frame_of(spec, scores).iloc[:0]))


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
