"""Made-up tables: a specification of few words, the frame of its evaluations, and readers of what is written."""

import itertools
import re

import numpy as np
import pandas as pd
from markdown_it import MarkdownIt

from core.tables import Budget, ColumnSpec, Published, PublishedRow, PublishedTable, RowSpec, TableSpec, assemble


def spec_of(rows, columns=("expert", "mixed"), seeds=(0, 1, 2), **options):
    """A specification; `rows` are labels, or labels with their RowSpec, and `columns` alike."""
    if not isinstance(rows, dict):
        rows = {row: RowSpec(train=(f"algo={index}",), tuning_trials=1) for index, row in enumerate(rows)}
    if not isinstance(columns, dict):
        columns = {column: ColumnSpec(train=(f"dataset={column}",)) for column in columns}
    return TableSpec(
        **{
            "title": "A table",
            "columns": columns,
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
        (row, column): {
            each: 50.0 + 4 * i + 20 * j + float(generator.normal(0, spread)) for each in spec.seeds_of(column)
        }
        for i, row in enumerate(spec.rows)
        for j, column in enumerate(spec.columns)
        if spec.asks(row, column)
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
