"""Blocks of a table as LaTeX with booktabs."""

import re
from collections.abc import Sequence

from core.statistics import protocol_lines
from core.tables.layout import Block, Entry

#: Lines that a page holds beside the notes; a longer table is broken between pages.
PAGE = 40
#: Columns of numbers that a line holds at this size; a wider table is shrunk.
WIDE = 4

_LETTERS = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu", "nu", "xi", "pi"),
    *("rho", "sigma", "tau", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma"),
    *("Phi", "Psi", "Omega"),
)
_GREEK = dict(zip("αβγδεζηθκλμνξπρστφχψωΓΔΘΛΞΠΣΦΨΩ", _LETTERS, strict=True))
_SIGNS = {"±": "pm", "×": "times", "·": "cdot", "≤": "le", "≥": "ge", "≈": "approx", "≠": "ne", "→": "to", "−": "-"}  # noqa: RUF001
_WRITTEN = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    "–": r"\textendash{}",  # noqa: RUF001
    "—": r"\textemdash{}",
    "…": r"\dots{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "’": r"\textquoteright{}",  # noqa: RUF001
    **{sign: rf"\{sign}" for sign in "{}$&#_%"},
    **{letter: rf"\ensuremath{{\{name}}}" for letter, name in _GREEK.items()},
    **{sign: rf"\ensuremath{{{name if name == '-' else chr(92) + name}}}" for sign, name in _SIGNS.items()},
    **{sign: f"{{{sign}}}" for sign in "[]*"},  # a line break takes one that follows as its option
}


def escape(text: str) -> str:
    """Text in which nothing is LaTeX, on one line."""
    return "".join(_WRITTEN.get(sign, sign) for sign in " ".join(text.split()))


def document(blocks: Sequence[Block], name: str, command: str) -> str:
    """All blocks, each a float, or where it is long a longtable. Compiles in any document class, in UTF-8."""
    label = re.sub(r"[^A-Za-z0-9-]+", "-", name)
    lines = [
        f"% Made by {' '.join(command.split())}",
        r"% In the preamble: \usepackage{booktabs,graphicx,longtable}",
    ]
    for index, block in enumerate(blocks):
        made_by = rf"Made by \texttt{{{escape(command)}}}." if block.checks else ""
        lines += ["", *_block(block, f"tab:{label}" + (f"-{index + 1}" if index else ""), made_by)]
    return "\n".join(lines) + "\n"


def _block(block: Block, label: str, made_by: str) -> list[str]:
    ends = "" if block.heading.endswith((".", "?", "!")) else "."
    caption = rf"\caption{{{escape(f'{block.heading}{ends} {block.caption}')}}}\label{{{label}}}"
    sides = "l" * block.labels + "r" * (len(block.header) - block.labels)
    header = [r"\toprule", _line([escape(name) for name in block.header]), r"\midrule"]
    body = [_line([_entry(entry) for entry in line]) for line in block.body]
    below = _below(block, made_by)
    if len(body) <= PAGE:
        rows = [rf"\begin{{tabular}}{{{sides}}}", *header, *body, r"\bottomrule", r"\end{tabular}"]
        if len(block.header) - block.labels > WIDE:
            rows = [r"\resizebox{\textwidth}{!}{%", *rows, "}"]
        return [r"\begin{table}", r"\centering\small", caption, *rows, *below, r"\end{table}"]
    rows = [rf"{caption}\\", *header, r"\endhead", *body, r"\bottomrule", r"\end{longtable}"]
    return [r"\begingroup\small", rf"\begin{{longtable}}{{{sides}}}", *rows, *below, r"\endgroup"]


def _line(entries: Sequence[str]) -> str:
    return rf"{' & '.join(entries)} \\"


def _entry(entry: Entry) -> str:
    value = rf"\textbf{{{_signed(entry.value)}}}" if entry.bold else _signed(entry.value)
    return rf"{value} {{\scriptsize {_signed(entry.detail)}}}" if entry.detail else value


def _signed(text: str) -> str:
    """Escaped, with minus signs instead of hyphens before numbers."""
    return re.sub(r"(?<![\w}])-(?=\d)", r"\\ensuremath{-}", escape(text))


def _below(block: Block, made_by: str) -> list[str]:
    lines = [r"\begin{flushleft}\footnotesize", *(rf"{escape(note)}\par" for note in block.notes)]
    if block.checks:
        items = [rf"\item {escape(line)}" for line in protocol_lines(block.checks)]
        lines += [r"Protocol:", r"\begin{itemize}", *items, r"\end{itemize}"]
    return [*lines, made_by, r"\end{flushleft}"] if made_by else [*lines, r"\end{flushleft}"]
