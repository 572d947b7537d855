"""Which synthetic slice to show for each tissue, and its pictures beside the real slice it was made of."""

from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from tools import figures
from tools.arms import read_datalist
from tools.files import InputError
from tools.nifti import case_name, load_ct, load_labels

ZOOM_MARGIN_MM = 12
ZOOM_AT_LEAST_MM = 50


@dataclass
class Example:
    """One tissue's best example.

    Attributes:
        tissue: painted tissue.
        case: synthetic case.
        source: real case that it was made of.
        patient: whose case the source is.
        slice: number of the slice, from 0, counted from the feet.
        voxels: painted voxels of the tissue in that slice.
        panels: title and PNG, from left to right.
        others: the other tissues that are outlined.
    """

    tissue: str
    case: str
    source: str
    patient: str
    slice: int
    voxels: int
    panels: list[tuple[str, bytes]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def _volume(path: str, labels: dict[str, int] | None = None) -> tuple[np.ndarray, tuple[float, float]]:
    """Return a CT or tissue map with axes to the patient's right, front and head, and its in-plane voxel size in mm."""
    array, file = load_ct(Path(path)) if labels is None else load_labels(Path(path), labels)
    image = nib.as_closest_canonical(nib.Nifti1Image(array, file.affine))
    return np.asarray(image.dataobj), tuple(float(size) for size in image.header.get_zooms()[:2])


def examples(directory: Path, manifest: list[dict], rival: Path | None = None) -> list[Example]:
    """Choose, for each pathological tissue, the accepted slice with most painted voxels, and draw it.

    Args:
        directory: what ``augment`` wrote.
        manifest: its manifest.
        rival: what ``augment`` wrote with another method and the same target maps; shown where it has the same case.

    Returns:
        One example per tissue that accepted cases hold, in the order of the label values.

    Raises:
        InputError: if a file is missing, or the manifest accepts a case that the datalist lacks.
    """
    datalist = read_datalist(Path(directory) / "datalist.json")
    labels = datalist["labels"]
    synthetic = {case_name(item["image"]): item for item in datalist["training"] if item.get("synthetic")}
    real = {case_name(item["image"]): item for item in datalist["training"] if not item.get("synthetic")}
    copies = {}
    if rival is not None:
        items = read_datalist(Path(rival) / "datalist.json")["training"]
        copies = {case_name(item["image"]): item for item in items if item.get("synthetic")}
    best: dict[str, tuple[int, str, int]] = {}
    for line in manifest:
        if not line.get("accepted"):
            continue
        case, source = line["case"], line["source"]
        if case not in synthetic or source not in real:
            raise InputError(f"{directory}: the manifest accepts {case} made of {source}, but the datalist lacks it")
        painted, _ = _volume(synthetic[case]["image"])
        original, _ = _volume(real[source]["image"])
        target, _ = _volume(synthetic[case]["label"], labels)
        if painted.shape != original.shape:
            raise InputError(
                f"{case} has shape {painted.shape}, but {source}, of which it was made, has {original.shape}"
            )
        for tissue, value in labels.items():
            if tissue in ("background", "healthy"):
                continue
            count = np.count_nonzero((target == value) & (painted != original), axis=(0, 1))
            if count.max() > best.get(tissue, (0,))[0]:
                best[tissue] = int(count.max()), case, int(count.argmax())
    sources = {line["case"]: line["source"] for line in manifest}
    found = []
    for tissue in sorted(best, key=labels.get):
        voxels, case, index = best[tissue]
        item, source = synthetic[case], real[sources[case]]
        example = Example(tissue, case, sources[case], str(item["patient"]), index, voxels)
        copy = copies.get(case)
        _draw(example, item, source, copy, labels)
        found.append(example)
    return found


def _draw(example: Example, item: dict, source: dict, copy: dict | None, labels: dict[str, int]) -> None:
    """Fill an example's panels."""
    z = example.slice
    painted, spacing = _volume(item["image"])
    original, _ = _volume(source["image"])
    target, _ = _volume(item["label"], labels)
    painted, original, target = painted[..., z], original[..., z], target[..., z]
    window = zoom((target == labels[example.tissue]) & (painted != original), spacing)
    colours = figures.tissue_colours(labels)
    shown = [
        name for name in labels if name not in ("background", "healthy") and (target[window] == labels[name]).any()
    ]
    example.others = [name for name in shown if name != example.tissue]
    outlines = [((target == labels[name])[window], colours[name]) for name in shown]
    body = _crop_to_body(painted)
    frame = tuple(slice(part.start - edge.start, part.stop - edge.start) for part, edge in zip(window, body))
    example.panels = [("real", figures.ct_slice(original[window], spacing))]
    example.panels.append(("painted", figures.ct_slice(painted[window], spacing)))
    example.panels.append(("painted, with target map", figures.ct_slice(painted[window], spacing, outlines)))
    if copy is not None:
        example.panels.append(
            ("copy-paste, same map", figures.ct_slice(_volume(copy["image"])[0][..., z][window], spacing))
        )
    example.panels.append(("painted, whole slice", figures.ct_slice(painted[body], spacing, frame=frame)))


def zoom(mask: np.ndarray, spacing: tuple[float, float]) -> tuple[slice, slice]:
    """Return the square (in mm) around a mask, with a margin, kept inside the slice.

    Args:
        mask: shape (W, H), not empty.
        spacing: voxel size along both axes, mm.

    Example:
        >>> mask = np.zeros((100, 100), bool)
        >>> mask[40:50, 0:10] = True
        >>> zoom(mask, (1.0, 1.0))
        (slice(20, 70, None), slice(0, 50, None))
    """
    edges = [np.flatnonzero(mask.any(axis=1 - axis)) for axis in (0, 1)]
    extent = max((edge[-1] + 1 - edge[0]) * size for edge, size in zip(edges, spacing)) + 2 * ZOOM_MARGIN_MM
    extent = max(extent, ZOOM_AT_LEAST_MM)
    parts = []
    for edge, size, length in zip(edges, spacing, mask.shape):
        count = min(length, round(extent / size))
        start = int(np.clip((edge[0] + edge[-1] + 1 - count) // 2, 0, length - count))
        parts.append(slice(start, start + count))
    return parts[0], parts[1]


def _crop_to_body(hu: np.ndarray) -> tuple[slice, slice]:
    """Return the part of a slice that is not air around the patient; everything, if nothing is dense."""
    dense = hu > -500
    if not dense.any():
        return slice(0, hu.shape[0]), slice(0, hu.shape[1])
    edges = [np.flatnonzero(dense.any(axis=1 - axis)) for axis in (0, 1)]
    return slice(int(edges[0][0]), int(edges[0][-1]) + 1), slice(int(edges[1][0]), int(edges[1][-1]) + 1)
