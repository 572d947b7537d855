"""Reading the table that says which patient each case belongs to, and what is known about that patient."""

import difflib
import math
from collections.abc import Iterable
from pathlib import Path

from tools.bundles import load_script
from tools.io.files import InputError
from tools.io.volume import case_name

COLUMNS = ("case", "patient", "age", "severity", "history", "fold")


def read_patients(
    path: Path | None, cases: Iterable[str], problems: list[str]
) -> tuple[dict[str, dict[str, object]], list[str]]:
    """Read who each case belongs to; what is wrong with single rows is added to ``problems``.

    The CSV file has the columns case and patient, optionally age, severity, history, fold.

    Returns:
        Case to its patient and attributes (``fold`` among them if given), and warnings.

    Raises:
        InputError: if the file cannot be read or lacks a column.
    """
    cases = list(cases)
    if path is None:
        warning = (
            "no patients CSV: each file counts as a patient of its own; two scans of one patient may share no fold"
        )
        return {case: {"patient": case} for case in cases}, [warning]
    try:
        columns, lines = load_script("difflung_synthesis", "tables").read_rows(path, ("age", "severity"))
    except ValueError as error:
        raise InputError(f"patients {error}") from None
    missing = [column for column in COLUMNS[:2] if column not in columns]
    if missing:
        raise InputError(
            f"{path} has no column {' and '.join(missing)}; its columns are {', '.join(columns) or 'none'}"
        )
    warnings = []
    for column in columns:
        close = difflib.get_close_matches(column, COLUMNS, n=1, cutoff=0.8)
        if close and column not in COLUMNS:
            warnings.append(f"{path}: column {column} is not used; did you mean {close[0]}?")

    rows: dict[str, dict[str, object]] = {}
    for line, row in lines:
        row = {key: value for key, value in row.items() if key in COLUMNS}
        case = case_name(row["case"])
        try:
            if not case or not row["patient"]:
                raise InputError("has no case or no patient")
            if case in rows:
                raise InputError(f"names case {case} again")
            rows[case] = {"patient": row["patient"]} | _attributes(row)
        except InputError as error:
            problems.append(f"{path} line {line} {error}")
            rows.setdefault(case, {})
    problems += [f"{path} does not list case {case}" for case in cases if case not in rows]
    problems += [
        f"{path} lists case {case}, which has no image and no label" for case in rows if case and case not in cases
    ]
    if "fold" in columns:
        problems += _fold_problems(path, {case: row for case, row in rows.items() if row})
    return {case: rows[case] for case in cases if rows.get(case)}, warnings


def _attributes(row: dict[str, str]) -> dict[str, object]:
    attributes: dict[str, object] = {}
    for key in ("age", "severity"):
        if row.get(key):
            try:
                attributes[key] = float(row[key])
            except ValueError:
                attributes[key] = math.nan
            if not math.isfinite(attributes[key]) or attributes[key] < 0:
                raise InputError(f"has {key} {row[key]!r}; expected a number from 0 up, or nothing if unknown")
    if row.get("history"):
        if row["history"].startswith(("$", "@", "%")):
            raise InputError(f"has history {row['history'][:80]!r}, which MONAI would run; write a word")
        attributes["history"] = row["history"]
    if "fold" in row:
        if not row["fold"].isdecimal():
            raise InputError(f"has fold {row['fold']!r}; expected 0, 1, 2, ... in every line")
        attributes["fold"] = int(row["fold"])
    return attributes


def _fold_problems(path: Path, rows: dict[str, dict[str, object]]) -> list[str]:
    problems, first = [], {}
    for case, row in rows.items():
        other = first.setdefault(row["patient"], case)
        if rows[other]["fold"] != row["fold"]:
            problems.append(
                f"{path} puts patient {row['patient']} in fold {rows[other]['fold']} (case {other}) "
                f"and in fold {row['fold']} (case {case}); the folds would leak"
            )
    given = {row["fold"] for row in rows.values()}
    empty = sorted(set(range(max(given, default=0) + 1)) - given)
    if len(given) < 2 or empty:
        numbers = ", ".join(map(str, sorted(given)))
        problems.append(f"{path} names fold {numbers}; expected at least two folds, numbered from 0 without a gap")
    return problems
