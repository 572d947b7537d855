"""What the report shows beside the verdicts: quality, acceptance, what was run, and which patients each stage saw."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from tools.comparison.arms import ARM_TITLES, arm_of
from tools.io.files import InputError, read_json
from tools.maps.statistics import MEASURES as LESION_MEASURES
from tools.painting.manifest import read_manifest
from tools.tissues import words

METHODS = ("cbmat", "konz", "no_ablation", "copy_paste", "drawn")  # in the order of the page
# Title and explanation of the measures of quality.json; one that is missing here is shown under its own name.
MEASURES = {
    "texture_distance": ("texture distance", "Fréchet distance between features of the texture, of different patients"),
    "auc": (
        "told from real",
        "area under the curve of a classifier of real and painted tiles, on patients it has not seen; 0.5 is perfect",
    ),
    "hu_wasserstein": ("HU distance", "Wasserstein-1 distance between the HU values of different patients; a check"),
    "hu_q05": ("5 % quantile", "HU that 5 % of the tissue's voxels do not exceed, all cases together"),
    "hu_q50": ("median", "of all the tissue's voxels"),
    "hu_q95": ("95 % quantile", "of all the tissue's voxels"),
    "laa950": ("low attenuation", "share of voxels below −950 HU"),
    "median_hu": ("median of a case", "middle case"),
    "spread_hu": ("spread of a case", "standard deviation of its voxels, middle case"),
    "seam_ratio": ("border", "how abrupt it is: a third is a ramp, one a jump"),
    "ood": ("unlikeness", "texture's distance from real tiles in their standard deviations"),
    "region_distance": ("nearest real lesion", "distance to it (1 − correlation); far below the floor means a copy"),
    "patch_distance": ("nearest with surroundings", "the same with what lies around the tissue, other patients only"),
    "earlier_distance": ("nearest painted case", "the same among the painted cases; near 0 means painted twice"),
    "realness": ("likeness", "log odds that a classifier of fakes gives for real tissue; higher is better"),
    "realness_limit": ("its limit", "95 % of real cases of unseen patients lie above it"),
    "recall": ("recall", "share of the painted tissue that a segmenter trained on real tissue finds; higher is better"),
}


def augmented_folders(directory: Path) -> list[dict]:
    """Find what ``augment`` wrote in a folder of ``compare``, method by method and fold by fold.

    Returns:
        One dict per folder with method, fold, percent (of the training patients), path and manifest (its lines).

    Raises:
        InputError: if a folder lacks its manifest, or a line of it is damaged.
    """
    found = []
    for method in METHODS:
        for path in sorted(Path(directory).glob(f"fold*/**/augment_{method}")):
            if not (path / "datalist.json").is_file():
                continue  # begun for an arm that was not finished; summary.json knows nothing of it
            place = re.fullmatch(r"fold(\d+)(?:/patients([\d.]+))?/.*", path.relative_to(directory).as_posix())
            if place:
                fold, percent = place[1], float(place[2] or 100)
                manifest = read_manifest(path / "manifest.jsonl")
                found.append(dict(method=method, fold=fold, percent=percent, path=path, manifest=manifest))
    found.sort(key=lambda folder: (METHODS.index(folder["method"]), int(folder["fold"]), -folder["percent"]))
    return found


def acceptance(folders: list[dict], labels: dict[str, int], by_fold: bool = False) -> list[dict]:
    """Return one row per tissue and method (and fold): cases made, cases accepted, and why not the others.

    A case with several tissues counts once for each. Reasons that differ in their figures only are counted together;
    the manifest has the figures. A case that another of its tissues spoiled counts as "another tissue of the case".
    """
    groups: dict[tuple, list[dict]] = {}
    for folder in folders:
        for line in folder["manifest"]:
            for tissue in line["tissues"]:
                key = (tissue, folder["method"], folder["fold"] if by_fold else "")
                groups.setdefault(key, []).append(line)
    rows = []
    for (tissue, method, fold), lines in groups.items():
        reasons = Counter(
            re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "…", words(reason)) for line in lines for reason in _reasons(line, tissue)
        )
        rows.append(
            {
                "tissue": tissue,
                "method": ARM_TITLES[method],
                "fold": fold,
                "cases": len(lines),
                "accepted": sum(bool(line["accepted"]) for line in lines),
                "reasons": "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common()),
            }
        )
    return sorted(rows, key=lambda row: labels.get(row["tissue"], len(labels)))


def _reasons(line: dict, tissue: str) -> list[str]:
    """Return why a case was rejected, as far as one tissue goes."""
    if line["accepted"]:
        return []
    checks = line.get("checks") or {}
    if tissue not in checks:
        return [str(line.get("reason") or "no reason given")]
    if not checks[tissue].get("accepted", True):
        return [str(reason) for reason in checks[tissue].get("reasons") or []] or ["no reason given"]
    spoiled = any(not check.get("accepted", True) for check in checks.values())
    return ["another tissue of the case" if spoiled else str(line.get("reason") or "no reason given")]


def _is_card(card: object) -> bool:
    """Return whether a tissue's entry in quality.json holds counts of cases, and measures with what was painted."""
    return isinstance(card, dict) and all(
        isinstance(value, int) if name.endswith("_cases") else isinstance(value, dict) and "painted" in value
        for name, value in card.items()
    )


def _mean(values: list) -> float | None:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return float(np.mean(numbers)) if numbers else None


def quality(folders: list[dict]) -> dict | None:
    """Return the quality cards of all folds, averaged: per tissue and measure the floor and the value of each method.

    Folders without quality.json do not count; a damaged one is an InputError.

    Returns:
        ``methods`` (titles), ``explained`` (title and explanation of the measures there are) and ``tissues``, per
        tissue a list of rows with title, unit, floor and values (one per method; None where not measurable). None
        without any card.
    """
    cards: dict[str, list[dict]] = {}
    for folder in folders:
        path = folder["path"] / "quality.json"
        if path.is_file():
            tissues = read_json(path).get("tissues")
            if not isinstance(tissues, dict) or not all(_is_card(card) for card in tissues.values()):
                raise InputError(f"{path} holds no tissues; run augment again")
            cards.setdefault(folder["method"], []).append(tissues)
    if not cards:
        return None
    every = [tissues for method in cards.values() for tissues in method]
    table: dict[str, list[dict]] = {}
    seen: dict[str, tuple[str, str]] = {}
    for tissue in dict.fromkeys(name for tissues in every for name in tissues):
        own = [tissues[tissue] for tissues in every if tissue in tissues]
        methods = [[tissues.get(tissue, {}) for tissues in method] for method in cards.values()]
        rows = table[tissue] = []
        for name in dict.fromkeys(name for card in own for name in card if not name.endswith("_cases")):
            entries = [card[name] for card in own if name in card]
            seen[name] = MEASURES.get(name, (words(name), ""))
            unit = next((entry["unit"] for entry in entries if entry.get("unit")), "")
            floor = _mean([entry.get("floor") for entry in entries])
            values = [_mean([card.get(name, {}).get("painted") for card in method]) for method in methods]
            rows.append({"title": seen[name][0], "unit": unit, "floor": floor, "values": values})
        counts = [sum(card.get("painted_cases") or 0 for card in method) for method in methods]
        real = max(card.get("real_cases") or 0 for card in own)
        rows.append({"title": "cases", "unit": "", "floor": real, "values": counts})
    explained = [pair for pair in seen.values() if pair[1]]
    return {"methods": [ARM_TITLES[method] for method in cards], "explained": explained, "tissues": table}


def map_table(folders: list[dict]) -> list[dict]:
    """Return how the new maps compare with the data, from maps.json: rows of the first method, averaged over folds."""
    groups: dict[tuple, list[dict]] = {}
    for folder in folders:
        path = folder["path"] / "maps.json"
        if path.is_file() and folder["method"] == folders[0]["method"]:
            for row in read_json(path).get("table") or []:
                groups.setdefault((row.get("tissue"), row.get("measure")), []).append(row)
    return [
        {"tissue": str(tissue), "measure": LESION_MEASURES.get(measure, words(str(measure)))}
        | {
            key: _mean([row.get(key, row.get(f"{key}_median")) for row in rows])
            for key in ("data", "bank", "distance", "floor")
        }
        for (tissue, measure), rows in groups.items()
    ]


def run_table(runs: list[dict]) -> list[dict]:
    """Return one row per share of the patients and arm, folds and seeds together.

    ``empty`` names the folds in which the arm should hold synthetic cases and has none.
    """
    groups: dict[tuple, list[dict]] = {}
    for run in runs:
        groups.setdefault((run["fraction"], run["arm"]), []).append(run)
    return [
        {
            "fraction": fraction,
            "arm": arm,
            "runs": len(group),
            "steps": _span([run["iterations"] for run in group]),
            "items": _span([run["training_items"] for run in group]),
            "synthetic": _span([run["synthetic_items"] for run in group]),
            "ratio": arm_of(arm)[1] if arm_of(arm)[0].method and not arm_of(arm)[0].alone else None,
            "spacing": _span([round(run["spacing_mm"][0], 2) for run in group]),
            "minutes": sum(run["seconds"] for run in group) / 60,
            "empty": sorted({run["fold"] for run in group if arm_of(arm)[0].method and run["synthetic_items"] == 0}),
        }
        for (fraction, arm), group in groups.items()
    ]


def steps(runs: list[dict]) -> str:
    """Return the optimizer steps of the arms but longer, "300" or "500–1000" where each fold has its own number."""
    return _span([run["iterations"] for run in runs if not arm_of(run["arm"])[0].longer])


def _span(values: list) -> str:
    """Return "3" or "3–5"."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def stage_table(runs: list[dict]) -> list[dict]:
    """Return, for each fold and stage, which patients it was fitted on and which of them are test patients."""
    rows: dict[tuple, dict] = {}
    for run in runs:
        for stage, names in run["fitted_on"].items():
            row = rows.setdefault((run["fold"], stage), {"fitted": set(), "test": set()})
            row["fitted"] |= set(names)
            row["test"] |= set(run["test_patients"])
    return [
        {
            "fold": fold,
            "stage": stage,
            "fitted": sorted(row["fitted"]),
            "test": sorted(row["test"]),
            "shared": sorted(row["fitted"] & row["test"]),
        }
        for (fold, stage), row in sorted(rows.items(), key=lambda pair: pair[0][0])
    ]


def checksums(folders: list[dict], settings: dict) -> list[tuple[str, str]]:
    """Return name and SHA-256 of the datalists and of every synthesizer that painted."""
    named = {
        f"{words(key.removesuffix('_sha256'))}, SHA-256": str(value)
        for key, value in settings.items()
        if key.endswith("_sha256") and value
    }
    for folder in folders:
        for sha in dict.fromkeys(line.get("checkpoint_sha256") for line in folder["manifest"]):
            if sha:
                share = "" if folder["percent"] == 100 else f", {folder['percent']:g} % of the patients"
                named[f"synthesizer, {ARM_TITLES[folder['method']]}, fold {folder['fold']}{share}"] = str(sha)
    return list(named.items())


def settings_table(settings: dict) -> list[tuple[str, str]]:
    """Return name and value of each setting that every arm shared."""
    return [
        (words(name), json.dumps(value) if isinstance(value, dict | list) else str(value))
        for name, value in settings.items()
        if name != "command" and not name.endswith("_sha256") and value not in ({}, [], None)
    ]


def versions(runs: list[dict]) -> list[str]:
    """Return the versions of the software, one text per set that occurs."""
    return list(
        dict.fromkeys(", ".join(f"{name} {number}" for name, number in run["versions"].items()) for run in runs)
    )
