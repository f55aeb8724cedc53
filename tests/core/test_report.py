import base64
import html
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

from core.cli import main
from core.evaluations import Row
from core.figures import Figure, learning_curves, return_against_scale, shorten
from core.report import write_report
from core.statistics import Check

GUIDED = Row(
    dataset="mixed",
    method="madiff",
    sampler="ddim-5",
    guidance_scale=1.4,
    returns=0.9,
    return_mean=-8.25,
    interval=(-8.75, -7.75),
    normalised_score=88.9,
    cost_mean=1.37,
    episodes=256,
    seed=0,
    teams=3,
    seconds_per_decision=0.00934,
    training_steps=5000,
    training_seconds=734.0,
)
PLAIN = replace(
    GUIDED,
    method="bc",
    sampler="",
    guidance_scale=None,
    returns=None,
    return_mean=-14.5,
    interval=(-15.0, -14.0),
    normalised_score=None,
    seconds_per_decision=3.1e-5,
    training_seconds=9.5,
)
ROWS = [replace(GUIDED, guidance_scale=scale, return_mean=-8.25 - scale) for scale in (0.0, 1.4)] + [PLAIN]
CURVES = {
    "mixed-madiff": [{"step": 50 * k, "seconds": k, "loss": math.exp(-k / 9)} for k in range(1, 40)],
    "mixed-bc": [{"step": 50 * k, "seconds": k, "loss": 0.1} for k in range(1, 20)],
}


def page_of(path: Path, rows: list[Row], **others: object) -> str:
    given = {"title": "T", "subtitle": "S", "checks": [], "figures": [], "reproduce": [], "versions": {}} | others
    write_report(path, rows=rows, **given)  # type: ignore[arg-type]
    return path.read_text(encoding="utf-8")


def entries(page: str) -> list[list[str]]:
    """Text of the table's cells, row by row."""
    rows = re.findall(r"<tr.*?</tr>", page, re.DOTALL)
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"<.*?>", "", cell).strip() for cell in row] for row in cells]


def texts(figure: Figure) -> list[str]:
    """Text elements of an SVG, which must be valid XML."""
    assert figure.mime == "image/svg+xml"
    root = ElementTree.fromstring(figure.data)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_table_holds_every_number_of_every_row(tmp_path):
    table = entries(page_of(tmp_path / "r.html", [GUIDED, PLAIN]))
    assert table[1] == ["mixed"]
    dash = "\N{EN DASH}"
    assert table[2] == [
        *("madiff ★ best", "ddim-5", "1.4", "0.9", "-8.25", "-8.75 to -7.75"),
        *("88.9", "1.37", "256", "9.34", "12 min 14 s"),
    ]
    assert table[3] == [
        *("bc", dash, dash, dash, "-14.50", "-15.00 to -14.00"),
        *(dash, "1.37", "256", "0.0310", "9.50 s"),
    ]


def test_rows_are_grouped_by_dataset_and_each_has_its_best(tmp_path):
    rows = [PLAIN, replace(GUIDED, dataset="expert"), replace(PLAIN, dataset="expert"), GUIDED]
    table = entries(page_of(tmp_path / "r.html", rows))[1:]
    assert [row[0] for row in table] == ["mixed", "bc", "madiff ★ best", "expert", "madiff ★ best", "bc"]


def test_a_row_whose_interval_overlaps_the_best_is_marked_as_close(tmp_path):
    near = replace(GUIDED, method="near", return_mean=-8.9, interval=(-9.4, -8.4))
    table = entries(page_of(tmp_path / "r.html", [GUIDED, near, PLAIN]))
    assert [row[0] for row in table[2:]] == ["madiff ★ best", "near ≈ best", "bc"]


def test_unknown_intervals_and_scores_are_said_to_be_so(tmp_path):
    row = replace(GUIDED, interval=(-math.inf, math.inf), return_mean=-12345.6, episodes=1)
    table = entries(page_of(tmp_path / "r.html", [row]))
    assert table[2][:6] == ["madiff", "ddim-5", "1.4", "0.9", "-12,345.6", "unknown"]


def test_html_in_names_is_escaped(tmp_path):
    bad = "<script>alert('x')</script>"
    figure = Figure(bad, bad, "image/svg+xml", b"<svg/>", bad + '"')
    row = replace(GUIDED, dataset=bad, method=bad, sampler=bad)
    given = {"title": bad, "subtitle": bad, "figures": [figure], "reproduce": [bad], "versions": {bad: bad}}
    page = page_of(tmp_path / "r.html", [row], checks=[Check(bad, False, bad, bad)], **given)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") == 15


def test_the_protocol_stands_under_the_table(tmp_path):
    checks = [Check("seeds", False, "1 seed", "10 or more seeds"), Check("episodes", True, "32 episodes", "32 or more")]
    page = re.sub(r"<.*?>", "", page_of(tmp_path / "r.html", ROWS, checks=checks))
    assert "✗ not met: seeds, 1 seed (wanted: 10 or more seeds)" in page
    assert "✓ met: episodes, 32 episodes\n" in page


def test_the_page_is_whole_and_needs_nothing_beside_itself(tmp_path):
    figures = [learning_curves(CURVES), return_against_scale(ROWS)]
    page = page_of(tmp_path / "r.html", ROWS, figures=figures, reproduce=["convoy demo"], versions={"torch": "2.9"})
    assert "http:" not in page
    assert "https:" not in page
    open_tags: list[str] = []
    images: list[dict[str, str | None]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag != "script"
            for name, value in attrs:
                assert name not in ("src", "href") or str(value).startswith("data:")
            if tag == "img":
                images.append(dict(attrs))
            if tag not in ("meta", "link", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Parser().feed(page)
    assert open_tags == []
    assert len(images) == 2
    assert [image["alt"] for image in images] == [figure.alt for figure in figures]
    assert "convoy demo" in page
    assert all(figure.caption in html.unescape(page) for figure in figures)
    assert base64.b64decode(str(images[0]["src"]).partition("base64,")[2]) == figures[0].data


def test_an_empty_report_is_a_page(tmp_path):
    assert "No evaluations yet" in page_of(tmp_path / "r.html", [])


def test_the_same_report_twice_is_identical(tmp_path):
    pages = [
        page_of(tmp_path / name, ROWS, figures=[learning_curves(CURVES), return_against_scale(ROWS)])
        for name in ("a.html", "b.html")
    ]
    assert pages[0] == pages[1]


def test_figures_ignore_the_users_settings_and_leave_them_alone():
    first = return_against_scale(ROWS)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "black"}):
        assert return_against_scale(ROWS) == first
        assert matplotlib.rcParams["font.size"] == 30


def test_learning_curves_name_every_run_as_text():
    shown = texts(learning_curves(CURVES))
    assert {"mixed-madiff", "mixed-bc", "loss", "seconds of training"} <= set(shown)
    assert "0.1" in shown  # plain numbers on the logarithmic axis


@pytest.mark.parametrize("rows", [[], [{"step": 50.0, "seconds": 1.0, "other": 2.0}]])
def test_runs_without_the_metric_are_left_out(rows):
    assert texts(learning_curves({"a": rows})) == ["No run has logged loss yet."]
    assert "a" not in texts(learning_curves({"a": rows} | CURVES))


def test_negative_metrics_and_single_rows_are_drawn():
    figure = learning_curves({"q": [{"step": 50.0, "seconds": 1.0, "loss": -3.0}]})
    assert "from -3 to -3 in 1 s" in figure.alt
    assert "q" in texts(figure)


def test_long_runs_stay_small():
    rows = [{"step": k, "seconds": k, "loss": 1 + math.sin(k) ** 2} for k in range(1, 30000)]
    assert len(learning_curves({"long": rows}).data) < 60_000


def test_returns_have_a_panel_a_dataset_and_a_line_a_series():
    rows = [*ROWS, replace(GUIDED, dataset="expert"), replace(GUIDED, dataset="expert", sampler="ddim-10")]
    figure = return_against_scale(rows)
    assert {"mixed", "expert", "bc", "madiff, ddim-5", "madiff, ddim-10", "0", "1.4"} <= set(texts(figure))
    assert "Highest mean return on mixed: madiff, ddim-5 -8.25 at scale 0; bc -14.50." in figure.alt


@pytest.mark.parametrize("interval", [GUIDED.interval, (-math.inf, math.inf), [-8.75, -7.75]])
def test_a_single_row_is_drawn(interval):
    shown = texts(return_against_scale([replace(GUIDED, interval=interval)]))
    assert {"mixed", "madiff", "1.4"} <= set(shown)


def test_lines_without_intervals_and_means_that_are_not_finite():
    unknown = (-math.inf, math.inf)
    rows = [GUIDED, replace(PLAIN, interval=unknown), replace(GUIDED, method="broken", return_mean=math.nan)]
    shown = texts(return_against_scale(rows))
    assert "bc" in shown
    assert "broken" not in shown
    assert texts(return_against_scale([PLAIN])) == ["No evaluation has a guidance scale."]


def test_names_with_dollars_and_brackets_are_text():
    shown = texts(return_against_scale([replace(GUIDED, method="a$b$ <c>")]))
    assert "a$b$ <c>" in shown


def test_shorten_keeps_both_ends():
    assert shorten("short", 5) == "short"
    assert shorten("mpe-spread-mixed-madiff-s0", 9) == "mpe-…f-s0"


@pytest.mark.slow
def test_the_demo_in_small(tmp_path, monkeypatch):
    """All of it, with hardly any episodes and steps; and again, with nothing left to do."""
    monkeypatch.chdir(tmp_path)
    command = ["demo", "output=demo", "collected=20", "episodes=4", "baselines=[bc]", "scales=[0.0,1.0]", "workers=1"]
    assert main([*command, "overrides=['trainer.steps=4']"]) == 0
    rows = json.loads(Path("demo/summary.json").read_text())
    assert [(row["dataset"], row["method"]) for row in rows] == [
        (dataset, method) for dataset in ("expert", "mixed") for method in ("madiff", "madiff", "bc")
    ]
    written = Path("demo/report.html").read_text()
    assert main([*command, "overrides=['trainer.steps=4']"]) == 0
    assert json.loads(Path("demo/summary.json").read_text()) == rows
    assert "expert" in written
