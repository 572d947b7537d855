"""Whether painted lung obeys its conditions: measures on painted and on real lung, rank correlations, verdicts."""

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr, wasserstein_distance
from tqdm import tqdm

from tools.data.datalist import ATTRIBUTES, Case
from tools.evaluation.probes import FEWEST_VOXELS, MAP, TOLD, UNKNOWN, Probe, Scene, best_slices, cut
from tools.io.volume import axial_axis, spacing_mm
from tools.tissues import tissue_labels
from tools.workflows.segmenter import dice

SMOOTHING_MM = 1.5  # in the axial plane, against noise
DENSE_HU, AIRY_HU = -750, -950  # smoothed voxels beyond these are not healthy
LOW_HU, HIGH_HU = -950, -500
OBEYED_ABOVE = 0.9  # rank correlation of the level means
CLEAR_P = 0.05  # of the real trend, before its direction is expected of the paintings
BIN_HU = 20
# What is measured, the most telling first, and the direction in which it must follow: None as real lung does.
DIRECTIONS = {
    "density": {"mean_hu": 1},
    "severity": {"non_healthy_share": 1, "abnormal_share": 1, "mean_hu": None},
    "age": {"median_hu": None},
}


def lung_measures(hu: np.ndarray, lung: np.ndarray, spacing: list[float], axis: int) -> dict[str, float]:
    """Return what can be measured in lung, a mask of the shape of ``hu`` (W, H, D), without knowing its tissues.

    ``abnormal_share`` is of voxels that were smoothed across ``axis``, the axial one. ``spacing`` is in mm.
    """
    sigma = [0 if side == axis else SMOOTHING_MM / size for side, size in enumerate(spacing)]
    weight = gaussian_filter(lung.astype(np.float32), sigma)
    smooth = gaussian_filter(np.where(lung, hu, 0).astype(np.float32), sigma)[lung] / weight[lung]
    inside = hu[lung]
    return {
        "mean_hu": float(inside.mean()),
        "abnormal_share": float(((smooth > DENSE_HU) | (smooth < AIRY_HU)).mean()),
        "low_share": float((inside < LOW_HU).mean()),
        "high_share": float((inside > HIGH_HU).mean()),
    }


def tissue_shares(tissues: np.ndarray, lung: np.ndarray) -> dict[str, float]:
    """Return the share of each tissue in the lung, and of all that is not healthy."""
    labels = {name: value for name, value in tissue_labels().items() if value}
    shares = {f"share_{name}": float((tissues[lung] == value).mean()) for name, value in labels.items()}
    ill = [share for name, share in shares.items() if name != "share_healthy"]
    return shares | {"non_healthy_share": float(sum(ill))}


def survey(training: list[Case], slices: int, hu_window: tuple[float, float]) -> list[dict]:
    """Return a row per case of what the training patients are like: attributes, densities, and the lung's slices."""
    labels = tissue_labels()
    rows = []
    for case in tqdm(training, desc="surveying the training patients", unit="case", disable=None):
        hu, label, image = case.stored()
        hu, axis = np.clip(hu, *hu_window), axial_axis(image.affine)
        known = {name: hu[label == value] for name, value in labels.items() if value}
        row = {key: case.attributes.get(key) for key in ATTRIBUTES}
        row["case"] = case.name
        row["density"] = {name: float(v.mean()) for name, v in known.items() if len(v) >= FEWEST_VOXELS}
        window = best_slices(label > 0, axis, slices)
        hu, label = cut(hu, axis, window), cut(label, axis, window)
        if (label > 0).any():
            row |= lung_measures(hu, label > 0, spacing_mm(image), axis) | tissue_shares(label, label > 0)
        if (label == labels["healthy"]).any():
            row["median_hu"] = float(np.median(hu[label == labels["healthy"]]))
        rows.append(row)
    return rows


def probe_rows(probe: Probe, painted: np.ndarray, segmented: np.ndarray | None) -> list[dict]:
    """Return the rows of conditions.csv that one painting gives, clipped to the window, with its tissues if known."""
    scene, region = probe.scene, probe.scene.region
    inside = painted[region]
    if probe.condition == "density":
        found = {"mean_hu": float(inside.mean())}
    elif probe.condition == "age":
        found = {"median_hu": float(np.median(inside))}
    elif probe.condition == MAP:
        found = {}
    elif probe.condition in (UNKNOWN, TOLD):
        found = {"wasserstein_hu": float(wasserstein_distance(inside, scene.hu[region]))}
    else:
        found = lung_measures(painted, region, spacing_mm(scene.image), scene.site.axis)
        found |= tissue_shares(segmented, region) if segmented is not None else {}
        kept = ("mean_hu", "abnormal_share", "non_healthy_share")
        found = {name: value for name, value in found.items() if (name in kept) == (probe.condition == "severity")}
    head = {"condition": probe.condition, "tissue": probe.tissue, "requested": probe.requested}
    head |= {"case": scene.site.case.name, "painting": probe.case}
    return [head | {"measure": name, "measured": value} for name, value in found.items()]


def trend(x: list[float], y: list[float]) -> dict[str, float | None]:
    """Return rank correlation, its p and the least-squares slope of y on x; None where either does not vary.

    Example:
        >>> trend([1, 2, 3], [5, 7, 9])["slope"]
        2.0
    """
    if len(set(x)) < 2 or len(set(y)) < 2:
        return {"rank_correlation": None, "p": None, "slope": 0.0 if len(set(x)) > 1 else None}
    rank = spearmanr(x, y)
    p, slope = float(rank.pvalue) if np.isfinite(rank.pvalue) else None, round(float(np.polyfit(x, y, 1)[0]), 9)
    return {"rank_correlation": float(rank.statistic), "p": p, "slope": slope}


def level_means(rows: list[dict]) -> dict:
    """Return what was requested, to the mean over the hosts of what was measured."""
    levels = dict.fromkeys(row["requested"] for row in rows)
    return {level: float(np.mean([r["measured"] for r in rows if r["requested"] == level])) for level in levels}


def within_hosts(rows: list[dict]) -> list[float]:
    """Return what was measured less the mean of the same host, so that hosts do not hide what a level does."""
    means = level_means([row | {"requested": row["case"]} for row in rows])
    return [row["measured"] - means[row["case"]] for row in rows]


def judge(rows: list[dict], surveyed: list[dict]) -> list[dict]:
    """Return one judgement per condition, tissue and measure: trends, the real trend beside it, and a verdict."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["condition"] not in (UNKNOWN, TOLD):
            groups.setdefault((row["condition"], row["tissue"], row["measure"]), []).append(row)
    judgements = []
    for (condition, tissue, name), group in groups.items():
        verdict = judge_history if condition == "history" else judge_numbers
        head = {"condition": condition, "tissue": tissue, "measure": name, "levels": level_means(group)}
        judgements.append(head | verdict(head, group, surveyed))
    return judgements


def judge_numbers(head: dict, rows: list[dict], surveyed: list[dict]) -> dict:
    """Return the judgement on density, severity or age: do the level means follow, in the direction expected?"""
    condition, name, means = head["condition"], head["measure"], head["levels"]
    pairs = trend([row["requested"] for row in rows], within_hosts(rows))
    result = {"rank_correlation": trend(list(means), list(means.values()))["rank_correlation"],
              "rank_correlation_pairs": pairs["rank_correlation"], "slope": pairs["slope"]}  # fmt: skip
    direction = DIRECTIONS[condition][name]
    if condition != "density":
        known = [row for row in surveyed if row[condition] is not None and name in row]
        real = trend([float(row[condition]) for row in known], [row[name] for row in known])
        result |= {"real_rank_correlation": real["rank_correlation"], "real_slope": real["slope"], "real_p": real["p"]}
        if direction is None:
            clear = real["p"] is not None and real["p"] < CLEAR_P
            direction = float(np.sign(real["rank_correlation"])) if clear else 0
    follows = direction * (result["rank_correlation"] or 0) > OBEYED_ABOVE
    verdict = "no clear real trend" if not direction else "obeyed" if follows else "not obeyed"
    return result | {"verdict": verdict}


def judge_history(head: dict, rows: list[dict], surveyed: list[dict]) -> dict:
    """Return the judgement on history: does each history lie on the same side of the mean as its real patients?"""
    name = head["measure"]
    real = level_means(
        [{"requested": row["history"], "measured": row[name]} for row in surveyed if row["history"] and name in row]
    )
    x, y = np.array([real[word] for word in head["levels"]]), np.array(list(head["levels"].values()))
    same = int((np.sign(x - x.mean()) == np.sign(y - y.mean())).sum()) if np.ptp(y) > 0 else 0
    pairs = trend([real[row["requested"]] for row in rows], within_hosts(rows))
    return {
        "rank_correlation": trend(list(x), list(y))["rank_correlation"],
        "rank_correlation_pairs": pairs["rank_correlation"], "slope": pairs["slope"], "real": real,
        "same_side": same, "histories": len(x), "verdict": "obeyed" if same == len(x) else "not obeyed",
    }  # fmt: skip


def judge_unknown(scenes: dict[str, list[tuple[Scene, np.ndarray]]], rows: list[dict], hu_window) -> dict:
    """Return how far painted lung lies from the real lung of the same hosts, nothing told and everything told.

    ``scenes`` has the scenes and paintings of both. Wasserstein-1 in HU is of all hosts together, the mean of each with
    itself, and the mean between the real lungs of two hosts; the histograms, over ``hu_window``, are shares per bin.
    """
    edges = np.arange(hu_window[0], hu_window[1] + BIN_HU, BIN_HU)
    real = [scene.hu[scene.region] for scene, _ in scenes[UNKNOWN]]
    result = {"bin_edges_hu": edges.tolist(), "histograms": {"real": shares(np.concatenate(real), edges)}}
    for kind, painted in scenes.items():
        inside = np.concatenate([hu[scene.region] for scene, hu in painted])
        alone = [row["measured"] for row in rows if row["condition"] == kind]
        result[kind] = {"wasserstein_hu": float(wasserstein_distance(inside, np.concatenate(real))),
                        "wasserstein_hu_per_host": float(np.mean(alone))}  # fmt: skip
        result["histograms"][kind] = shares(inside, edges)
    between = [wasserstein_distance(a, b) for number, a in enumerate(real) for b in real[:number]]
    return result | {"real_between_hosts": float(np.mean(between)) if between else None}


def judge_map(scenes: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Return the Dice of each tissue that the segmenter finds in painted lung, and in the real lung of the same slices.

    A scene is its tissue map, the tissues found in the painting made from it, and those found in the real CT.
    """
    found = {}
    for name, value in tissue_labels().items():
        if value and any((truth == value).any() for truth, _, _ in scenes):
            found[name] = {
                kind: dice([(scene[0] == value, scene[index] == value) for scene in scenes])
                for kind, index in (("painted", 1), ("real", 2))
            }
    return found


def shares(values: np.ndarray, edges: np.ndarray) -> list[float]:
    """Return the share of the values in each bin."""
    counts, _ = np.histogram(values, edges)
    return [round(float(count), 6) for count in counts / len(values)]
