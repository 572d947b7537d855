"""What a comparison found about an arm, carried into the bundle of the model that was trained after it."""

import textwrap
from pathlib import Path

from tools.io.files import read_json, write_json, write_text
from tools.io.markdown import table
from tools.tissues import words

KEPT = ("trained_on", "spacing_mm", "overrides", "configs", "comparison")  # of a card; the rest names patients
NUMBERS = (("mean", ".3f"), ("difference", "+.3f"))
TOLD = (
    "The model was trained on all patients of the comparison, so no patient is left to test it on. The figures are "
    "those of its arm in the comparison, on patients held out there. Research use only; not for diagnosis."
)


def tell_verdict(staged: Path, card: dict) -> None:
    """Write a comparison's verdict into a bundle that is to be packaged: card, page and metadata, without names.

    Args:
        staged: The bundle's folder.
        card: The card of its weights, as ``finish`` writes it: ``trained_on`` and ``comparison``, with ``arm`` and
            ``rows``, which are rows of ``summary.json``.
    """
    rows, arm = card["comparison"]["rows"], card["comparison"]["arm"]
    write_json(staged / "models/card.json", {name: card[name] for name in KEPT if name in card})
    lines = [
        f"# The comparison behind these weights\n\nTrained on {card['trained_on']}.",
        "",
        *textwrap.wrap(TOLD, 120),
        "",
    ]
    head = ["tissue", "arm", "patients", "Dice", "difference", "interval", "verdict"]
    lines.append(table(head, [_cells(row) for row in rows]))
    write_text(staged / "docs/comparison.md", "\n".join(lines) + "\n")
    path = staged / "configs/metadata.json"
    metadata = read_json(path)
    metadata["data_source"] = card["trained_on"]
    metadata["eval_metrics"] = {
        f"dice_{row['tissue']}": round(row["mean"], 4) for row in rows if row["arm"] == arm and row["mean"] is not None
    }
    write_json(path, metadata)


def _cells(row: dict) -> list[str]:
    """Return a row of the page's table; what is not known is empty."""
    numbers = ("" if row.get(key) is None else f"{row[key]:{form}}" for key, form in NUMBERS)
    interval = "{:+.3f} to {:+.3f}".format(*row["interval"]) if row.get("interval") else ""
    return [words(row["tissue"]), row["arm"], str(row["patients"]), *numbers, interval, row.get("verdict", "")]
