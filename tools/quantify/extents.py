"""How much of each lung, third and zone each tissue takes: the regions of a lung and what is measured in them.

Everything here works in voxels of canonical (RAS) orientation: the first axis runs to the patient's right, the last
to the head. Nothing else of the project is imported: the app of `tools/serving/deploy.py` carries a copy of this file.
"""

import csv
from pathlib import Path

import numpy as np
from scipy import ndimage

REGIONS = ("whole", "right", "left", "upper", "middle", "lower", "central", "peripheral")
PERIPHERY_MM = 15.0
EMPHYSEMA_HU = -950  # Gevenois et al., AJRCCM 1996
SOFT_TISSUE_HU = -300
OWN_SIDE = 0.9  # a part of the lung that lies on one side of the midline by this share is that side's
OPENINGS_MM = (1.0, 2.0, 4.0, 8.0)  # by which touching lungs are taken apart


def midline(hu: np.ndarray, lung: np.ndarray) -> float:
    """Return where the body's middle lies along the first axis: the median over the slices with lung, in voxels."""
    middles = []
    for k in np.flatnonzero(lung.any(axis=(0, 1))):
        body, count = ndimage.label((hu[..., k] > SOFT_TISSUE_HU) | lung[..., k])
        largest = 1 + int(np.argmax(np.bincount(body.ravel(), minlength=count + 1)[1:])) if count else 0
        columns = np.flatnonzero((body == largest).any(axis=1))
        middles.append((columns[0] + columns[-1]) / 2)
    return float(np.median(middles))


def right_lung(lung: np.ndarray, spacing: np.ndarray, middle: float) -> np.ndarray:
    """Return which lung voxels, shape (W, H, D), are the right lung's, slice by slice, so that loose slices will do.

    A part of the lung belongs to the side of :func:`midline` on which it lies. One that lies on both sides is opened
    until it falls into parts of one side each, whose surroundings follow the nearest; if it never does, it is cut
    at the midline.
    """
    right_of_middle = (np.arange(lung.shape[0]) > middle)[:, None]
    right = np.zeros(lung.shape, bool)
    for k in range(lung.shape[2]):
        parts, _ = ndimage.label(lung[..., k])
        for number, box in enumerate(ndimage.find_objects(parts), 1):
            part = parts[box] == number
            right[..., k][box] |= _right_of_part(part, np.broadcast_to(right_of_middle[box[0]], part.shape), spacing)
    return right


def _right_of_part(part: np.ndarray, right_side: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return which voxels of a connected part of a slice are right lung."""
    share = right_side[part].mean()
    if not 1 - OWN_SIDE < share < OWN_SIDE:
        return part if share > 0.5 else np.zeros_like(part)
    depth = ndimage.distance_transform_edt(np.pad(part, 1), sampling=spacing[:2])[1:-1, 1:-1]
    for opening in OPENINGS_MM:
        cores, count = ndimage.label(depth > opening)
        if not count:
            break
        shares = ndimage.mean(right_side, cores, np.arange(1, count + 1))
        sizes = np.bincount(cores.ravel())[1:]
        apart = (shares <= 1 - OWN_SIDE) | (shares >= OWN_SIDE)
        if sizes[apart].sum() >= OWN_SIDE * sizes.sum() and np.ptp(shares[apart]) > 0.5:
            cores[np.isin(cores, 1 + np.flatnonzero(~apart))] = 0
            nearest = ndimage.distance_transform_edt(
                cores == 0, sampling=spacing[:2], return_distances=False, return_indices=True
            )
            return part & (np.r_[0, shares][cores[tuple(nearest)]] > 0.5)
    return part & right_side


def pleura_distance(lung: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return each lung voxel's distance in mm to the lung's border within its slice, shape (W, H, D)."""
    distance = np.zeros(lung.shape, np.float32)
    for box in ndimage.find_objects(lung.astype(np.uint8)):
        near = tuple(slice(max(axis.start - 1, 0), axis.stop + 1) for axis in box[:2])  # the border lies in there
        for k in range(box[2].start, box[2].stop):
            distance[*near, k] = ndimage.distance_transform_edt(lung[*near, k], sampling=spacing[:2])
    return distance


def regions(
    lung: np.ndarray, spacing: np.ndarray, middle: float, periphery_mm: float = PERIPHERY_MM
) -> dict[str, np.ndarray]:
    """Return where each of ``REGIONS`` is in a lung of shape (W, H, D), not empty.

    Thirds are of equal height, from the lowest to the highest slice with lung; the periphery is what lies within
    ``periphery_mm`` of the lung's border in its slice, the mediastinal border included.
    """
    spacing = np.round(spacing, 3)  # files round voxel sizes in their own ways: what is equally far stays so in all
    right = right_lung(lung, spacing, middle)
    slices = np.flatnonzero(lung.any(axis=(0, 1)))
    height = (np.arange(lung.shape[2]) - slices[0] + 0.5) / (slices[-1] - slices[0] + 1)
    filled = np.stack([ndimage.binary_fill_holes(lung[..., k]) for k in range(lung.shape[2])], axis=-1)
    depth = pleura_distance(np.pad(filled, ((1, 1), (1, 1), (0, 0))), spacing)[1:-1, 1:-1]
    peripheral = lung & (depth <= np.round(periphery_mm, 3))
    return {
        "whole": lung, "right": right, "left": lung & ~right,
        "upper": lung & (height >= 2 / 3), "middle": lung & (height >= 1 / 3) & (height < 2 / 3),
        "lower": lung & (height < 1 / 3), "central": lung & ~peripheral, "peripheral": peripheral,
    }  # fmt: skip


def region_extents(
    hu: np.ndarray, tissues: np.ndarray, spacing: np.ndarray, labels: dict[str, int], periphery_mm: float = PERIPHERY_MM
) -> dict[str, dict[str, float | None]]:
    """Return region to measure to value, for HU and label values of shape (W, H, D) with some lung; spacing in mm.

    Returns:
        ``lung_ml``; per tissue ``<tissue>_ml`` and ``<tissue>_percent`` of the region's lung; ``below_950_percent``,
        the share of its voxels below -950 HU; ``mean_hu``. Percentages and HU are None where a region has no lung.
    """
    lung = tissues > 0
    middle = midline(hu, lung)
    box = ndimage.find_objects(lung.astype(np.uint8))[0]
    hu, tissues = hu[box], tissues[box]
    ml = float(np.prod(spacing)) / 1000
    result = {}
    for name, region in regions(tissues > 0, spacing, middle - box[0].start, periphery_mm).items():
        counts = np.bincount(tissues[region], minlength=max(labels.values()) + 1)
        inside, total = hu[region], int(region.sum())
        row: dict[str, float | None] = {"lung_ml": total * ml}
        for tissue, value in labels.items():
            if value:
                row[f"{tissue}_ml"] = float(counts[value]) * ml
                row[f"{tissue}_percent"] = 100 * float(counts[value]) / total if total else None
        row["below_950_percent"] = 100 * float((inside < EMPHYSEMA_HU).mean()) if total else None
        row["mean_hu"] = float(inside.mean()) if total else None
        result[name] = row
    return result


def write_rows(path: Path, cases: dict[str, dict | None], labels: dict[str, int]) -> None:
    """Write a row per case and region; a case without lung has a row with no numbers."""
    tissues = [name for name, value in labels.items() if value]
    measures = ["lung_ml", *(f"{name}_{unit}" for name in tissues for unit in ("ml", "percent"))]
    columns = ["case", "region", *measures, "below_950_percent", "mean_hu"]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for case, found in cases.items():
            for region, row in (found or {"whole": {"lung_ml": 0.0}}).items():
                numbers = {key: value if value is None else round(value, 3) for key, value in row.items()}
                writer.writerow({"case": case, "region": region} | numbers)
