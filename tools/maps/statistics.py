"""How much the lesions of new maps are like those of the training patients, with the real-versus-real floor."""

from pathlib import Path

import numpy as np
import pandas
from scipy.stats import wasserstein_distance

from tools.io.markdown import table
from tools.maps.lesions import Lesion
from tools.plotting import INK, QUIET, calm, new_figure, png_bytes
from tools.tissues import pathological_tissues, tissue_colours, tissue_labels, words

NUMBER = "lesions_per_ct"
MEASURES = {
    "volume_ml": "size, ml",
    NUMBER: "lesions per CT with any",
    "depth_mm": "distance to the pleura, mm",
    "height": "height in lung, 0 base to 1 apex",
    "elongation": "elongation",
    "fullness": "fullness (1 = ellipsoid)",
}
HALVINGS = 20  # of the training patients, over which the floor is averaged
QUARTILES = (0.25, 0.5, 0.75)


def lesion_row(lesion: Lesion, patient: str) -> dict:
    """Return case, patient, tissue and measures of a lesion."""
    return {"case": lesion.case, "patient": patient, "tissue": lesion.tissue} | lesion.measures


def _values(lesions: pandas.DataFrame, measure: str) -> np.ndarray:
    per_lesion = lesions.groupby("case").size() if measure == NUMBER else lesions[measure]
    return per_lesion.to_numpy(float)


def floor(lesions: pandas.DataFrame, measure: str, seed: int = 0) -> float:
    """Return the mean Wasserstein-1 distance of one half of the patients' lesions of a tissue to the other's.

    The halvings are drawn with ``seed``; NaN if there are fewer than two patients.
    """
    patients = sorted(lesions["patient"].unique())
    if len(patients) < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(HALVINGS):
        first = lesions["patient"].isin(rng.permutation(patients)[: len(patients) // 2])
        distances.append(wasserstein_distance(_values(lesions[first], measure), _values(lesions[~first], measure)))
    return float(np.mean(distances))


def compare_lesions(data: pandas.DataFrame, bank: pandas.DataFrame) -> pandas.DataFrame:
    """Compare the lesions of the training patients and those that the bank's maps add, rows of ``lesion_row``.

    Returns:
        A row per tissue and measure that both have: number of lesions, median and quartiles of data and bank, the
        Wasserstein-1 distance of both in the measure's unit, and the floor.
    """
    rows = []
    for tissue in _shared(data, bank):
        real, new = data[data["tissue"] == tissue], bank[bank["tissue"] == tissue]
        for measure in MEASURES:
            row = {"tissue": tissue, "measure": measure, "data_lesions": len(real), "bank_lesions": len(new)}
            for side, lesions in (("data", real), ("bank", new)):
                quartiles = np.quantile(_values(lesions, measure), QUARTILES)
                row |= dict(zip((f"{side}_q1", f"{side}_median", f"{side}_q3"), quartiles))
            row["distance"] = wasserstein_distance(_values(real, measure), _values(new, measure))
            rows.append(row | {"floor": floor(real, measure)})
    return pandas.DataFrame(rows)


def _shared(data: pandas.DataFrame, bank: pandas.DataFrame) -> list[str]:
    """Return the tissues of which both have lesions, in the order of their label values."""
    both = set(data["tissue"]) & set(bank["tissue"]) if len(bank) else set()
    return [name for name in pathological_tissues() if name in both]


def table_of(data: pandas.DataFrame, bank: pandas.DataFrame) -> list[dict]:
    """Return the rows of :func:`compare_lesions` for JSON, None where there is no number."""
    rows = compare_lesions(data, bank).to_dict("records")
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]


def markdown(compared: pandas.DataFrame) -> str:
    """Return the table of :func:`compare_lesions` in Markdown."""
    head, lines = "tissue | measure | data: median (quartiles) | bank: median (quartiles) | distance | floor", []
    for row in compared.to_dict("records"):
        sides = [f"{row[f'{s}_median']:.3g} ({row[f'{s}_q1']:.3g}, {row[f'{s}_q3']:.3g})" for s in ("data", "bank")]
        numbers = [f"{row[key]:.3g}" for key in ("distance", "floor")]
        tissue = f"{words(row['tissue'])} ({row['data_lesions']}, {row['bank_lesions']})"
        lines.append([tissue, MEASURES[row["measure"]], *sides, *numbers])
    note = (
        "In brackets after the tissue: lesions of the training patients, new lesions of the bank. Distance: "
        "Wasserstein-1 of both. Floor: the same of one half of the training patients and the other, mean of "
        f"{HALVINGS} halvings."
    )
    return f"{table(head.split(' | '), lines)}\n\n{note}\n"


def figure(data: pandas.DataFrame, bank: pandas.DataFrame) -> bytes:
    """Draw the share of lesions below each value, data dashed and bank solid, a panel per tissue and measure; a PNG."""
    tissues = _shared(data, bank)
    colours = tissue_colours(tissue_labels())
    drawing = new_figure(2.2 * len(MEASURES), 1.6 * len(tissues) + 0.5)
    panels = drawing.subplots(len(tissues), len(MEASURES), squeeze=False)
    for row, tissue in zip(panels, tissues):
        for axes, (measure, title) in zip(row, MEASURES.items()):
            calm(axes)
            for lesions, colour, style in ((data, INK, "--"), (bank, colours[tissue], "-")):
                axes.ecdf(_values(lesions[lesions["tissue"] == tissue], measure), color=colour, linestyle=style)
            if measure == "volume_ml":
                axes.set_xscale("log")
                axes.set_ylabel(words(tissue), fontsize=9, color=INK)
            if tissue == tissues[0]:
                axes.set_title(title, fontsize=8.5, color=INK)
    drawing.supxlabel("share of lesions below a value: training patients dashed, bank solid", fontsize=8.5, color=QUIET)
    return png_bytes(drawing)


def save(data: pandas.DataFrame, bank: pandas.DataFrame, folder: Path) -> pandas.DataFrame:
    """Write statistics.csv, statistics.md and statistics.png into a folder, and return the table."""
    compared = compare_lesions(data, bank)
    compared.to_csv(folder / "statistics.csv", index=False)
    (folder / "statistics.md").write_text(markdown(compared), encoding="utf-8")
    (folder / "statistics.png").write_bytes(figure(data, bank))
    return compared
