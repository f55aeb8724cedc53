"""The gallery draws its figures, its numbers are right, and its page has the tables of its numbers."""

import importlib
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
FIGURES = ("trajectories", "errors", "energy", "classifier_free", "distillation")


@pytest.fixture(scope="module")
def gallery():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("gallery")


@pytest.fixture(scope="module")
def quick(gallery, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    gallery.main(folder, gallery.numbers.QUICK)
    return folder


@pytest.fixture(scope="module")
def record(quick):
    return json.loads((quick / "gallery.json").read_text())


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_and_small(quick, name):
    for folder in (quick, PAGE.parent / "gallery"):
        data = (folder / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert 5_000 < len(data) < 150_000


def test_higher_order_is_closer_to_the_flow(record):
    errors = {row["name"]: row["errors"][-1] for row in record["errors"] if row["panel"] == "samplers"}
    assert errors["3M"] < errors["2M"] < errors["DDIM"]
    assert 10 * max(record["reference_gaps"].values()) < errors["3M"]


def test_more_evaluations_come_closer(record):
    for row in record["errors"]:
        assert row["evaluations"] in ([8, 32], [7, 31])
        assert row["errors"][1] < row["errors"][0], row["name"]


def test_energies_tilt_as_they_should(record):
    rows = {
        (row["energy"], row["guidance"], row["sampler"]): (row["mean"], row["variance"]) for row in record["energy"]
    }
    exact = {"quadratic": (0.5, 0.5), "linear": (1.0, 1.0)}
    for energy, moments in exact.items():
        assert rows[energy, "exact noisy energy", "2M-100"] == pytest.approx(moments, abs=3e-3)
    assert rows["linear", "clean estimate", "2M-100"] == pytest.approx((1.0, 1.0), abs=3e-3)
    # int_0^1 exp((v^2 - 1) / 2) dv and 1 / e
    assert rows["quadratic", "clean estimate", "2M-100"] == pytest.approx((0.7248, 0.3679), abs=3e-3)


def test_guidance_at_0_and_1_is_the_model(record):
    rows = {row["scale"]: row for row in record["classifier_free"]}
    for scale in (0, 1):
        assert rows[scale]["mean"] == pytest.approx(rows[scale]["power_mean"], abs=0.06)
        assert rows[scale]["deviation"] == pytest.approx(rows[scale]["power_deviation"], abs=0.04)
    assert rows[-1]["mean"] < rows[0]["mean"] < rows[1]["mean"] < rows[2]["mean"] < rows[4]["mean"]


def test_energy_distance_is_what_it_says(gallery):
    modes = gallery.MODES
    generator = torch.Generator().manual_seed(0)
    shifted, exact = (modes.draw(3000, generator) + shift for shift in (1.0, 0.0))

    def mean_distance(x, y, pairs):
        return torch.cdist(x, y).sum().item() / pairs

    between = mean_distance(shifted, exact, 3000**2)
    within = mean_distance(shifted, shifted, 3000**2) + mean_distance(exact, exact, 3000 * 2999)
    assert modes.energy_distance(shifted) == pytest.approx(2 * between - within, rel=0.03)
    assert modes.energy_distance(exact) < 2e-3


def test_the_page_shows_the_stored_numbers(gallery):
    page = PAGE.read_text()
    stored = json.loads((PAGE.parent / "gallery" / "gallery.json").read_text())
    for table in gallery.tables(stored):
        assert table in page, f"docs/gallery.md lacks this table of gallery.json:\n{table}"
    for name in FIGURES:
        assert f"](gallery/{name}.png)" in page
