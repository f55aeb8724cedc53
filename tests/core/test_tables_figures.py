import struct

import pytest

from core.tables import FigureSpec, RowSpec, assemble, figures
from tests.core.tables import awkward, every, frame_of, random_scores, spec_of

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
