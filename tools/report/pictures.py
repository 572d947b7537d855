"""Which synthetic slices to show for each tissue, and their pictures beside the real slices they were made of."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools.data.datalist import SYNTHETIC, Case, read_datalist
from tools.io.files import InputError
from tools.io.volume import canonical_image, load_ct, load_labels
from tools.report import figures
from tools.tissues import tissue_colours

ZOOM_MARGIN_MM = 12
ZOOM_AT_LEAST_MM = 50


@dataclass
class Example:
    """One painted case, as an example of one tissue."""

    tissue: str
    fold: str  # whose synthesizer painted it
    case: str
    source: str  # the real case that it was made of
    patient: str  # whose case the source is
    why: str  # a word that says why this one is shown
    reason: str = ""  # sentence that says why the case was rejected; empty if it was accepted
    slice: int = 0  # its number, from 0, counted from the feet
    voxels: int = 0  # painted voxels of the tissue in that slice
    panels: list[tuple[str, bytes]] = field(default_factory=list)  # title and PNG of each, from left to right
    others: list[str] = field(default_factory=list)  # the other tissues that are outlined


def examples(folders: list[dict], rivals: list[dict]) -> list[Example]:
    """Choose up to three painted cases per tissue by rule, not by looks, and draw the slice with most painted voxels.

    Over all folds: the accepted case with the largest painted volume, that with the median volume, and the largest
    rejected case; where none was rejected, the accepted case with the smallest volume. Only the chosen cases are read,
    each once. Folders are of ``tables.augmented_folders``; the rivals are copy-paste's, shown where they have the same
    case with the same target map. The examples come in the order of the label values.

    Raises:
        InputError: if a file is missing, or a manifest accepts a case that the datalist lacks.
    """
    if not folders:
        return []
    made = [_items(folder["path"]) for folder in folders]
    labels = made[0][0]
    chosen: dict[tuple[int, str], list[Example]] = {}
    for tissue in sorted(labels, key=labels.get):
        for number, line, why in _choose(tissue, folders, made):
            reason = "" if line["accepted"] else _reason(line, tissue)
            texts = tissue, folders[number]["fold"], line["case"], line["source"], str(line["patient"]), why, reason
            chosen.setdefault((number, line["case"]), []).append(Example(*texts))
    for (number, case), group in tqdm(chosen.items(), desc="drawing pictures", unit="case", disable=None):
        _, synthetic, real = made[number]
        rival = _rival(folders[number], case, rivals)
        _draw(group, synthetic[case], real[group[0].source], rival, labels)
    found = [example for group in chosen.values() for example in group if example.panels]
    order = {"largest": 0, "median": 1, "smallest": 2, "rejected": 3}
    return sorted(found, key=lambda example: (labels[example.tissue], order[example.why]))


def _items(directory: Path) -> tuple[dict[str, int], dict[str, Case], dict[str, Case]]:
    """Return labels, all painted cases that are on disk (rejected ones too), and real cases and hosts, by name."""
    names = ("datalist_unfiltered.json", "datalist.json")
    path = next((Path(directory) / name for name in names if (Path(directory) / name).is_file()), None)
    datalist = read_datalist(path or Path(directory) / "datalist.json")
    split: tuple[dict, dict] = ({}, {})
    for case in datalist["training"]:
        split[0 if case.synthetic else 1][case.name] = case
    for image in (Path(directory) / "hosts/images").glob("*.nii.gz"):
        case = Case(image, image.parents[1] / "labels" / image.name, "", SYNTHETIC)
        split[1][case.name] = case
    return datalist["labels"], *split


def _choose(tissue: str, folders: list[dict], made: list[tuple]) -> Iterator[tuple[int, dict, str]]:
    """Yield folder number, manifest line and why it is shown."""
    accepted, rejected = [], []
    for number, folder in enumerate(folders):
        _, synthetic, real = made[number]
        for line in folder["manifest"]:
            volume = (line.get("volume_ml") or {}).get(tissue, 0)
            if not volume:
                continue
            there = line["case"] in synthetic and line["source"] in real
            if line["accepted"] and not there:
                raise InputError(
                    f"{folder['path']}: the manifest accepts {line['case']} made of {line['source']}, "
                    "but the datalist lacks it"
                )
            if line["accepted"]:
                accepted.append((volume, number, line))
            elif there and not (line.get("checks") or {}).get(tissue, {}).get("accepted", False):
                rejected.append((volume, number, line))
    for cases in (accepted, rejected):
        cases.sort(key=lambda entry: (-entry[0], entry[1], entry[2]["case"]))
    places = {"largest": 0, "median": len(accepted) // 2, "smallest": len(accepted) - 1}
    if rejected:
        del places["smallest"]
    shown = set()
    for why, place in places.items():
        if place < len(accepted) and place not in shown and accepted:
            shown.add(place)
            yield *accepted[place][1:], why
    if rejected:
        yield *rejected[0][1:], "rejected"


def _reason(line: dict, tissue: str) -> str:
    """Return why a case was rejected: what the tissue's own checks say, or else the case's reason."""
    own = (line.get("checks") or {}).get(tissue, {}).get("reasons") or []
    return "; ".join(map(str, own)) or str(line.get("reason") or "no reason given")


def _rival(folder: dict, case: str, rivals: list[dict]) -> Case | None:
    """Return copy-paste's case of the same fold and case, unless the manifests say that its target map differs."""

    def map_of(lines: list[dict]) -> object:
        return next((line.get("map_sha256") for line in lines if line["case"] == case), None)

    for rival in rivals:
        if rival["fold"] == folder["fold"] and map_of(rival["manifest"]) == map_of(folder["manifest"]):
            return _items(rival["path"])[1].get(case)
    return None


def _volume(path: Path, labels: dict[str, int] | None = None) -> tuple[np.ndarray, tuple[float, float]]:
    """Return a CT or tissue map with axes to the patient's right, front and head, and its in-plane voxel size in mm."""
    array, file = load_ct(path) if labels is None else load_labels(path, labels)
    image = canonical_image(array, file.affine)
    return np.asarray(image.dataobj), tuple(float(size) for size in image.header.get_zooms()[:2])


def _draw(group: list[Example], case: Case, source: Case, rival: Case | None, labels: dict[str, int]) -> None:
    """Fill the panels of the examples of one case; an example whose tissue was painted nowhere keeps none."""
    painted, spacing = _volume(case.image)
    original, _ = _volume(source.image)
    target, _ = _volume(case.label, labels)
    if painted.shape != original.shape:
        raise InputError(
            f"{group[0].case} has shape {painted.shape}, but {group[0].source}, of which it was made, "
            f"has {original.shape}"
        )
    pasted = None if rival is None else _volume(rival.image)[0]
    for example in group:
        counts = np.count_nonzero((target == labels[example.tissue]) & (painted != original), axis=(0, 1))
        example.slice, example.voxels = int(counts.argmax()), int(counts.max())
        if example.voxels:
            slices = [None if array is None else array[..., example.slice] for array in (original, painted, pasted)]
            _draw_slice(example, *slices, target[..., example.slice], spacing, labels)


def _draw_slice(
    example: Example,
    original: np.ndarray,
    painted: np.ndarray,
    pasted: np.ndarray | None,
    target: np.ndarray,
    spacing: tuple[float, float],
    labels: dict[str, int],
) -> None:
    """Fill an example's panels from one slice, shape (W, H), of the real, painted and pasted CT and the target map."""
    window = zoom((target == labels[example.tissue]) & (painted != original), spacing)
    colours = tissue_colours(labels)
    shown = [
        name for name in labels if name not in ("background", "healthy") and (target[window] == labels[name]).any()
    ]
    example.others = [name for name in shown if name != example.tissue]
    outlines = [((target == labels[name])[window], colours[name]) for name in shown]
    body = _crop_to_body(painted)
    frame = tuple(slice(part.start - edge.start, part.stop - edge.start) for part, edge in zip(window, body))
    example.panels = [
        ("real", figures.ct_slice(original[window], spacing)),
        ("painted", figures.ct_slice(painted[window], spacing)),
        ("painted, target map outlined", figures.ct_slice(painted[window], spacing, outlines)),
    ]
    if pasted is not None:
        example.panels.append(("copy-paste, same map", figures.ct_slice(pasted[window], spacing)))
    example.panels.append(("painted, whole slice", figures.ct_slice(painted[body], spacing, frame=frame)))


def zoom(mask: np.ndarray, spacing: tuple[float, float]) -> tuple[slice, slice]:
    """Return the square (spacing in mm) around a mask (W, H), not empty, with a margin, kept inside the slice.

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
