"""What is in a data set: voxels, volumes and HU of each tissue, gathered case by case, and the card that says so."""

from collections import Counter

import numpy as np

from tools.io.markdown import table

LOWEST_HU, HIGHEST_HU = -2048, 4095  # values beyond are counted in the outermost bins
QUANTILES = (1, 5, 25, 50, 75, 95, 99)  # percent
LOW_ATTENUATION_HU = -950


def _quantiles(histogram: np.ndarray, percents: tuple[int, ...]) -> list[int]:
    """Return the lowest HU that at least each share of the voxels does not exceed."""
    cumulative = histogram.cumsum()
    ranks = np.ceil(cumulative[-1] * np.array(percents) / 100)
    return (np.searchsorted(cumulative, ranks) + LOWEST_HU).tolist()


class TissueStatistics:
    """Counts over all cases in histograms of 1 HU, so that memory does not grow with the number of cases."""

    def __init__(self, labels: dict[str, int]) -> None:
        self.labels = {name: value for name, value in labels.items() if name != "background"}
        self.histograms = np.zeros((max(labels.values()) + 1, HIGHEST_HU - LOWEST_HU + 1), np.int64)
        self.volume_ml = Counter()
        self.low_attenuation = 0
        self.voxels: dict[str, dict[str, int]] = {}
        self.median_hu: dict[str, dict[str, int]] = {}
        self.spacings: list[list[float]] = []
        self.shapes: list[tuple[int, ...]] = []

    def add(self, case: str, hu: np.ndarray, tissue: np.ndarray, spacing: list[float]) -> None:
        """Count one case: HU and label values of shape (W, H, slices), voxel size in mm."""
        rows, bins = self.histograms.shape
        histograms = np.zeros_like(self.histograms)
        for z in range(hu.shape[2]):
            column = np.clip(np.rint(hu[..., z]), LOWEST_HU, HIGHEST_HU).astype(np.int64) - LOWEST_HU
            cells = (tissue[..., z] * np.int64(bins) + column).ravel()
            histograms += np.bincount(cells, minlength=rows * bins).reshape(rows, bins)
            self.low_attenuation += int(np.count_nonzero((hu[..., z] < LOW_ATTENUATION_HU) & (tissue[..., z] > 0)))
        self.histograms += histograms
        self.voxels[case] = {name: int(histograms[value].sum()) for name, value in self.labels.items()}
        self.median_hu[case] = {
            name: _quantiles(histograms[self.labels[name]], (50,))[0] for name in self.tissues(case)
        }
        for name, count in self.voxels[case].items():
            self.volume_ml[name] += count * float(np.prod(spacing)) / 1000
        self.spacings.append(spacing)
        self.shapes.append(hu.shape)

    def tissues(self, case: str) -> set[str]:
        """Return the names of the tissues that a case holds."""
        return {name for name, count in self.voxels[case].items() if count}

    def hu_quantiles(self, name: str) -> dict[str, int] | None:
        """Return percent to HU for one tissue, None if no case holds it."""
        histogram = self.histograms[self.labels[name]]
        return dict(zip(map(str, QUANTILES), _quantiles(histogram, QUANTILES))) if histogram.any() else None

    def low_attenuation_share(self) -> float:
        """Return the share of all labelled lung voxels below -950 HU."""
        return self.low_attenuation / max(1, sum(int(self.histograms[value].sum()) for value in self.labels.values()))


def data_card(
    name: str,
    statistics: TissueStatistics,
    items: list[dict],
    folds: int,
    warnings: list[str],
    converted: list[str],
) -> dict:
    """Return the card of a data set, ready for JSON: counts, volumes in ml, HU quantiles, spacings in mm, shapes.

    ``items`` holds ``case``, ``patient`` and ``fold`` of each case; ``converted`` names those that came as DICOM.
    """

    def patients(tissue: str | None = None, fold: int | None = None) -> int:
        held = (item for item in items if fold is None or item["fold"] == fold)
        return len({item["patient"] for item in held if tissue is None or statistics.voxels[item["case"]][tissue]})

    def extent(rows: list) -> dict[str, list]:
        return {"min": np.min(rows, axis=0).tolist(), "max": np.max(rows, axis=0).tolist()}

    voxels = {tissue: int(statistics.histograms[value].sum()) for tissue, value in statistics.labels.items()}
    return {
        "name": name,
        "cases": len(items),
        "patients": patients(),
        "tissues": {
            tissue: {
                "voxels": voxels[tissue],
                "share_of_lung": round(voxels[tissue] / max(1, sum(voxels.values())), 6),
                "volume_ml": round(statistics.volume_ml[tissue], 3),
                "patients": patients(tissue),
                "cases": sum(counts[tissue] > 0 for counts in statistics.voxels.values()),
                "hu_quantiles": statistics.hu_quantiles(tissue),
            }
            for tissue in statistics.labels
        },
        "lung_share_below_minus_950_hu": round(statistics.low_attenuation_share(), 6),
        "folds": [
            {
                "fold": fold,
                "patients": patients(fold=fold),
                "cases": sum(item["fold"] == fold for item in items),
                "patients_with": {tissue: patients(tissue, fold) for tissue in statistics.labels},
            }
            for fold in range(folds)
        ],
        "spacing_mm": extent(statistics.spacings),
        "shape": extent(statistics.shapes),
        "from_dicom": converted,
        "warnings": warnings,
    }


def auc_text(found: dict) -> str:
    """Return an area under the curve with its interval, and of how many patients.

    Example:
        >>> auc_text({"auc": 0.61, "low": 0.4, "high": 0.8, "patients": 8, "other_patients": 4})
        'area under the curve 0.61 (0.40 to 0.80), 8 patients trained on and 4 others'
    """
    people = f"{found['patients']} patients trained on and {found['other_patients']} others"
    if found["auc"] is None:
        return f"too few patients, {people}"
    return f"area under the curve {found['auc']:.2f} ({found['low']:.2f} to {found['high']:.2f}), {people}"


def _membership(rows: list[dict]) -> str:
    """Return the section on what `membership` found of synthesizers trained on these cases; empty if it was not run."""
    if not rows:
        return ""
    lines = [
        f"- synthesizer {row['synthesizer_sha256'][:12]}, {attack}: {auc_text(found)}"
        for row in rows
        for attack, found in row["attacks"].items()
    ]
    told = "Can the patients that a synthesizer was trained on be told from others? .5 is chance; 95 % intervals."
    return "\n".join(["\n## Membership inference\n", told, "", *lines, ""])


def card_text(card: dict) -> str:
    """Return a card as Markdown."""
    tissues, absent = card["tissues"], ["–"] * len(QUANTILES)
    amounts = [
        [name, f"{t['voxels']:,}", f"{t['share_of_lung']:.1%}", f"{t['volume_ml']:,.1f}", t["patients"], t["cases"]]
        for name, t in tissues.items()
    ]
    densities = [[name, *(t["hu_quantiles"].values() if t["hu_quantiles"] else absent)] for name, t in tissues.items()]
    folds = [[f["fold"], f["patients"], f["cases"], *f["patients_with"].values()] for f in card["folds"]]
    spacing, shape = (
        " to ".join(" × ".join(f"{size:.4g}" for size in card[key][end]) for end in ("min", "max"))
        for key in ("spacing_mm", "shape")
    )
    converted = ", ".join(card["from_dicom"])
    origin = f"\nConverted from DICOM series to NIfTI, in HU and voxel by voxel: {converted}.\n" if converted else ""
    warnings = "\n".join(f"- {warning}" for warning in card["warnings"]) or "None."
    return f"""# Data card: {card["name"]}

{card["cases"]} cases of {card["patients"]} patients in {len(card["folds"])} folds.
Voxel size, smallest to largest along each axis: {spacing} mm. Shape: {shape} voxels.
{origin}
## Warnings

{warnings}

## Tissues

{table(["tissue", "voxels", "share of lung", "volume (ml)", "patients", "cases"], amounts)}

Lung is the sum of the tissues; {card["lung_share_below_minus_950_hu"]:.1%} of it lies below {LOW_ATTENUATION_HU} HU.

## HU quantiles

{table(["tissue", *(f"{percent} %" for percent in QUANTILES)], densities)}

## Folds: patients with each tissue

{table(["fold", "patients", "cases", *tissues], folds)}
{_membership(card.get("membership", []))}"""
