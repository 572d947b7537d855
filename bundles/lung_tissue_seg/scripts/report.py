"""The scores as a page and a picture: overlap per case, extents beside the true ones, the confusion matrix."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

COLORS = ("#8a8a8a", "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442")  # as in tools/
COLUMNS = (("Dice, all cases", "dice_all", ".3f"), ("lung known", "dice_all_lung_known", ".3f"),
           ("Dice", "dice", ".3f"), ("lung known", "dice_lung_known", ".3f"),
           ("surface Dice", "surface_dice", ".3f"), ("95 % Hausdorff, mm", "hd95_mm", ".1f"),
           ("error of the extent, points of %", "percent_error", ".2f"), ("ml added", "false_ml", ".2f"))  # fmt: skip


def write_report(
    folder: Path, rows: Sequence[Mapping], summary: Mapping[str, Mapping], confusion: np.ndarray, names: Sequence[str]
) -> None:
    """Write report.md and report.png, each whole or not at all.

    Args:
        folder: Folder to write to.
        rows: Rows of ``scores.csv``.
        summary: Rows of ``scores_summary.csv`` by tissue.
        confusion: Voxels by true label and answer, in the order of ``names``.
        names: Names of the labels, background first.
    """
    for name, content in (("report.md", table(summary).encode()), ("report.png", draw(rows, confusion, names))):
        partial = folder / f".{name}.{os.getpid()}"
        partial.write_bytes(content)
        os.replace(partial, folder / name)


def table(summary: Mapping[str, Mapping]) -> str:
    """Return the summary as a Markdown page: means over cases with their 95 % intervals."""
    lines = ["# Scores of the tissue maps", "", "Mean over the cases whose label holds the tissue, 95 % interval in"]
    lines += [
        "brackets. All cases: one without the tissue scores 1 if none was found and 0 if any was. Lung known: the"
    ]
    lines += [
        "likeliest tissue at each voxel of the true lung. Of the extent the mean size of its error over all cases."
    ]
    lines += [""]
    lines += ["| tissue | cases | missed | added | " + " | ".join(head for head, _, _ in COLUMNS) + " |"]
    lines += ["| --- " * (4 + len(COLUMNS)) + "|"]
    for tissue, row in summary.items():
        cells = [tissue.replace("_", " "), *(str(row[key]) for key in ("cases", "missed", "false"))]
        for _, key, form in COLUMNS:
            mean, low, high = (row[name] for name in (key, f"{key}_low", f"{key}_high"))
            text = "" if mean is None else f"{mean:{form}}"
            cells.append(text if low is None else f"{text} ({low:{form}}, {high:{form}})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "![Scores](report.png)", "", "Research use only; not for diagnosis.", ""])


def draw(rows: Sequence[Mapping], confusion: np.ndarray, names: Sequence[str]) -> bytes:
    """Return a PNG: Dice of each case, extents against the true ones, and the confusion matrix by true label."""
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    overlap, extents, taken = figure.subplots(1, 3)
    for place, name in enumerate(names[1:]):
        color = COLORS[place % len(COLORS)]
        of_tissue = [row for row in rows if row["tissue"] == name]
        dice = [row["dice"] for row in of_tissue if row["dice"] is not None]
        spread = np.random.default_rng(0).uniform(-0.18, 0.18, len(dice))
        overlap.scatter(place + spread, dice, s=18, color=color, alpha=0.7)
        if dice:
            overlap.hlines(np.mean(dice), place - 0.3, place + 0.3, color="black")
        points = np.array([(row["percent"], row["percent_predicted"]) for row in of_tissue]).reshape(-1, 2)
        extents.scatter(*points.T, s=18, color=color, alpha=0.7, label=name.replace("_", " "))
    words = [name.replace("_", " ") for name in names]
    overlap.set_xticks(range(len(names) - 1), words[1:], rotation=30, ha="right")
    overlap.set(title="Dice per case, and mean", ylim=(-0.02, 1.02))
    extents.axline((0, 0), slope=1, color="grey", linewidth=1)
    extents.set(title="Extent in % of the lung", xlabel="true", ylabel="found", xscale="symlog", yscale="symlog")
    extents.set_xlim(-0.2, 110)
    extents.set_ylim(-0.2, 110)
    extents.legend(fontsize=8)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    taken.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for at in np.ndindex(shares.shape):
        taken.text(*at[::-1], f"{shares[at]:.2f}", ha="center", va="center", fontsize=8,
                   color="white" if shares[at] > 0.6 else "black")  # fmt: skip
    taken.set_xticks(range(len(names)), words, rotation=30, ha="right")
    taken.set_yticks(range(len(names)), words)
    taken.set(title="Share of the true voxels", xlabel="found", ylabel="true")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()
