"""Made-up tables: a specification of few words, and the frame of its evaluations."""

import numpy as np
import pandas as pd

from core.tables import Budget, ColumnSpec, RowSpec, TableSpec


def spec_of(rows, columns=("expert", "mixed"), seeds=(0, 1, 2), **options):
    """A specification; `rows` are labels, or labels with their RowSpec."""
    if not isinstance(rows, dict):
        rows = {row: RowSpec(train=(f"algo={index}",), tuning_trials=1) for index, row in enumerate(rows)}
    return TableSpec(
        **{
            "title": "A table",
            "columns": {column: ColumnSpec(train=(f"dataset={column}",)) for column in columns},
            "rows": rows,
            "seeds": tuple(seeds),
            "budget": Budget(cpus=1, minutes=20),
            "selected_on_test": False,
            **options,
        }
    )


def frame_of(spec, scores, **entries):
    """A line for each score of {(row, column): {seed: score}}; rows with equal options share their runs."""
    lines = [
        {
            "row": row,
            "column": column,
            "run": "/".join((*spec.rows[row].train, *spec.columns[column].train, str(seed))),
            "task": "mpe/spread",
            "dataset": column,
            "fingerprint": f"fingerprint-of-{column}",
            "method": row,
            "training_seed": seed,
            "training_steps": 5000,
            "training_seconds": 600.5,
            "sampler": "ddim-5",
            "guidance_scale": np.nan,
            "returns": 0.9,
            "episodes": 256,
            "seed": 3_000_000,
            "return_mean": -8.0,
            "return_low": -8.5,
            "return_high": -7.5,
            "normalised_score": score,
            "cost_mean": 1.5,
            "seconds_per_decision": 0.002,
            **entries,
        }
        for (row, column), of_seeds in scores.items()
        for seed, score in of_seeds.items()
    ]
    return pd.DataFrame(lines)


def random_scores(spec, seed=0, spread=3.0):
    """Scores that rise from row to row and differ between columns."""
    generator = np.random.default_rng(seed)
    return {
        (row, column): {each: 50.0 + 4 * i + 20 * j + float(generator.normal(0, spread)) for each in spec.seeds}
        for i, row in enumerate(spec.rows)
        for j, column in enumerate(spec.columns)
    }


#: Every sign that means something in Markdown or LaTeX.
AWKWARD = (r"a|b_c*d%e&f#g", r"$x^2$ ~ \alpha {braces}", "<b>[1](2)</b> `code` !", "*starts*", "-5", "λ ≤ 1 … “q”")


def awkward_spec(**options):
    """A table whose every text is awkward."""
    return spec_of(
        AWKWARD,
        columns=("a|b", "100%_$"),
        title=r"50% of $x_1$ & \more | less",
        caption="1. One | two_three & 4% #5.",
        reference=AWKWARD[0],
        name="odd_name",
        **options,
    )
