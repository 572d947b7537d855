"""Tables that people save from spreadsheets, in any of their dialects."""

import csv
import io
import re
from collections.abc import Collection
from pathlib import Path

DELIMITERS = ("\t", ";", ",")
NO_HEADER = re.compile(r"(?:sep=.*|[\s,;]*)\n?", re.IGNORECASE)  # a line before the header
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


def read_rows(path: Path, numbers: Collection[str] = ()) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return the columns of a CSV file and its rows that are not empty.

    Values are separated by commas, semicolons or tabs, whichever the header holds most of; a byte order mark, a first
    line ``sep=;``, spaces round values and empty rows, also before the header, do not count.

    Args:
        path: The file, UTF-8.
        numbers: Columns of numbers: where commas do not separate values, they may stand for the decimal point.

    Returns:
        The columns in lower case; line number and column to value of each row, without spaces round it, "" where
        nothing stands.

    Raises:
        ValueError: If the file cannot be read or is not UTF-8, a column comes twice, or a row has too many values.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8; save as UTF-8 (in Excel: CSV UTF-8)") from None
    if "\0" in text:
        raise ValueError(f"{path} is not UTF-8, perhaps UTF-16; save as UTF-8 (in Excel: CSV UTF-8)")
    lines = text.splitlines(keepends=True)
    skipped = next((place for place, line in enumerate(lines) if not NO_HEADER.fullmatch(line)), len(lines))
    lines = lines[skipped:]
    header = lines[0] if lines else ""
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO("".join(lines), newline=""), delimiter=delimiter)
    try:
        return _rows(path, reader, delimiter, skipped, numbers)
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num + skipped} cannot be read: {error}; save it anew") from None


def _rows(path: Path, reader, delimiter: str, skipped: int, numbers: Collection[str]):
    """Return what :func:`read_rows` does, of a reader whose first row is the header."""
    columns = [column.strip().lower() for column in next(reader, [])]
    while columns and not columns[-1]:  # separators behind the last column
        columns.pop()
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]}; remove one")
    rows = []
    for values in reader:
        values, line = [value.strip() for value in values], reader.line_num + skipped
        if not any(values):
            continue
        if any(values[len(columns) :]):
            raise ValueError(
                f"{path} line {line} has {len(values)} values for {len(columns)} columns; "
                "quote values that hold the separator, or write numbers with a point"
            )
        row = dict.fromkeys(columns, "") | dict(zip(columns, values))
        for column in numbers:
            if delimiter != "," and DECIMAL_COMMA.fullmatch(row.get(column, "")):
                row[column] = row[column].replace(",", ".")
        rows.append((line, row))
    return columns, rows
