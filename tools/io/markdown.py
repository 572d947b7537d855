"""Tables in Markdown, and pages of which a command writes one part."""

from collections import Counter
from pathlib import Path

from tools.io.files import InputError, write_text


def table(head: list[str], rows: list[list]) -> str:
    """Return a table in Markdown.

    Example:
        >>> print(table(["a", "b"], [["1", 2]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in [head, ["---"] * len(head), *rows])


def counts_table(head: list[str], counts: dict[tuple[str, ...], Counter], columns: list[str]) -> str:
    """Return a table of how many trials of each kind ended in which way, with their sum in the last row.

    Args:
        head: What the parts of a kind are called.
        counts: Kind to what became of its trials.
        columns: The ways to end that are shown.

    Example:
        >>> print(counts_table(["file"], {("CT",): Counter(right=2)}, ["right"]))
        | file | trials | right |
        | --- | --- | --- |
        | CT | 2 | 2 |
        | all | 2 | 2 |
    """
    all_of_them = (*[""] * (len(head) - 1), "all")
    every = [*counts.items(), (all_of_them, sum(counts.values(), Counter()))]
    rows = [[*kind, one.total(), *(one[column] for column in columns)] for kind, one in every]
    return table([*head, "trials", *columns], rows)


class MarkedPage:
    """A page whose part between two marks a command writes; the rest is somebody's text.

    Args:
        path: Markdown page; one with the title and nothing else is made up if it does not exist.
        marks: The line before the part and the line behind it.
        title: Title of a new page.

    Raises:
        InputError: if the page does not hold both marks once and in this order.
    """

    def __init__(self, path: Path, marks: tuple[str, str], title: str) -> None:
        self.path, (begin, end) = Path(path), marks
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else f"# {title}\n\n{begin}\n{end}\n"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise InputError(f"{path} does not hold {begin} and {end} once and in this order; there go the tables")
        self.before, self.after = text[: text.index(begin) + len(begin)], text[text.index(end) :]

    def write(self, part: str) -> None:
        """Write the page with a new part."""
        write_text(self.path, f"{self.before}\n\n{part}\n\n{self.after}")

    @property
    def shown(self) -> Path | str:
        """The path as a command line on the page gives it: without the folders of this machine."""
        return self.path.name if self.path.is_absolute() else self.path
