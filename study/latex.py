"""The ranked table for a manuscript: LaTeX with booktabs.

Needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "·": r"\textperiodcentered{}",
}


def to_latex(rows: Sequence[Mapping[str, str]], caption: str, labels: Sequence[str]) -> str:
    """Return a table environment that needs the package booktabs.

    Args:
        rows: At least one; the first column is a name.
        caption: What it shows.
        labels: Stand in the caption, `SYNTHETIC` say.
    """
    columns = list(rows[0])
    lines = [_line(columns), r"\midrule", *(_line(row.values()) for row in rows)]
    note = f"\\textbf{{{_escape(' · '.join(labels))}}}. " if labels else ""
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{note}{_escape(caption)}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _line(cells: Iterable[str]) -> str:
    return " & ".join(_escape(cell) for cell in cells) + r" \\"


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in text)
