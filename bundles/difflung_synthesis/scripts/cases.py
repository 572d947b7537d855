"""Which files belong together."""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from monai.data import load_decathlon_datalist

from .attributes import Attributes
from .tables import read_rows
from .volumes import check_file, list_volumes


def datalist_cases(
    datalist: str,
    fold: int,
    held_out: bool,
    attributes: Mapping[str, Sequence] | None = None,
    labels: Mapping[str, int] | None = None,
    hu_window: Sequence[float] = (-1024, 300),
) -> list[dict]:
    """Return the image and label files of a datalist's training patients, or of its held-out ones.

    Args:
        datalist: JSON file whose ``training`` items have image, label (relative to the file's folder) and fold.
        fold: The fold that is held out.
        held_out: True for that fold's items, False for all others.
        attributes: Ranges as in :class:`Attributes`; an item's own keys of these names are encoded.
        labels: Label values by tissue name; with them an item's own ``density_<tissue>``, a mean in HU, is told too.
        hu_window: Range of a density.

    Returns:
        Items with image, label and attributes, float32, shape (size,); with labels also density, as :func:`paint_cases`
        has it.

    Raises:
        ValueError: If an item has no fold, an attribute is out of range, or a file is refused by its header.
    """
    items = load_decathlon_datalist(datalist)
    without = [str(item["image"]) for item in items if "fold" not in item]
    if without:
        raise ValueError(f"{datalist} gives no fold for {without[0]}; make it with `python -m tools dataset`")
    encoder = Attributes(attributes or {})
    # MONAI takes any text for a path, an empty one for a folder
    raw = json.loads(Path(datalist).read_text(encoding="utf-8"))["training"]
    chosen = [
        {"image": item["image"], "label": item["label"]}
        | {"attributes": numpy.float32(encoder.encode(known, Path(item["image"]).name))}
        | ({"density": encode_density(known, Path(item["image"]).name, labels, hu_window)} if labels else {})
        for item, known in zip(items, raw)
        if (item["fold"] == fold) == held_out
    ]
    for item in chosen:
        check_file(item["image"], ct=True)
        check_file(item["label"], like=item["image"])
    return chosen


def painting_cases(
    dataset_dir: str,
    seed: int,
    labels: Mapping[str, int],
    hu_window: Sequence[float],
    attributes: Mapping[str, Sequence] | None = None,
) -> list[dict]:
    """Pair the files of ``images``, ``labels`` and ``targets`` by name; add each case's conditions and seed.

    A folder in ``images`` is a CT too, if it holds one DICOM series.

    Conditions come from ``conditions.csv`` in the folder, if it is there: a column ``case`` and any of the attributes
    and ``density_<tissue>``, the mean HU wanted of a tissue. What is left empty is unknown. Cases with the same word in
    a column ``seed`` share their noise.

    Args:
        dataset_dir: Folder that holds the three folders.
        seed: Seed of the run; a case's own is made of it and of the case's name, so it does not depend on the other
            cases.
        labels: Label values by tissue name.
        hu_window: HU that become -1 and 1.
        attributes: Ranges as in :class:`Attributes`.

    Returns:
        Items with image, label, target, seed, attributes (float32, (size,)) and density (in [-1, 1], NaN where unknown,
        float32, (tissues,)), sorted by name.

    Raises:
        ValueError: If a folder is missing or empty, a file has no partner, or the conditions are unusable.
    """
    kinds = {"image": "images", "label": "labels", "target": "targets"}
    files = {}
    for kind, folder in kinds.items():
        path = Path(dataset_dir) / folder
        files[kind] = files_in(path, with_series=kind == "image")
        if not files[kind]:
            raise ValueError(
                f"{path} holds no .nii or .nii.gz file; {' / '.join(kinds.values())} hold same-named files"
            )
    names = sorted(set().union(*files.values()))
    for name in names:
        lacking = [kinds[kind] for kind in kinds if name not in files[kind]]
        if lacking:
            raise ValueError(f"{name} has no file in {dataset_dir}/{lacking[0]}")
    encoder = Attributes(attributes or {})
    rows = read_conditions(Path(dataset_dir) / "conditions.csv", names, encoder, labels)
    return [
        {kind: files[kind][name] for kind in kinds}
        | {"seed": case_seed(rows[name].get("seed") or name, seed)}
        | {"attributes": numpy.float32(encoder.encode(rows[name], name))}
        | {"density": encode_density(rows[name], name, labels, hu_window)}
        for name in names
    ]


def files_in(folder: Path, with_series: bool) -> dict[str, str]:
    """Return case name to volume, and to folder with a DICOM series if those count; empty for a missing folder.

    Raises:
        ValueError: If two have one name.
    """
    found = list_volumes(folder, series=with_series)[0] if folder.is_dir() else {}
    return {name: str(path) for name, path in found.items()}


def passed_over(dataset_dir: str) -> dict[str, str]:
    """Return what else lies in the folder of CTs, and why it is none; see :func:`scripts.volumes.list_volumes`."""
    folder = Path(dataset_dir) / "images"
    return list_volumes(folder)[1] if folder.is_dir() else {}


def read_conditions(path: Path, names: list[str], encoder: Attributes, labels: Mapping[str, int]) -> dict[str, dict]:
    """Return the row of each case of a table of conditions; an empty one where the table or the case is missing.

    Raises:
        ValueError: If a column is not a condition, or a row names no case, one that is not there, or one again.
    """
    rows: dict[str, dict] = {name: {} for name in names}
    if not path.is_file():
        return rows
    densities = [f"density_{name}" for name, value in labels.items() if value]
    known = {column.lower(): column for column in ["case", "seed", *encoder.ranges, *densities]}
    numbers = [column for column in known if column not in ("case", "seed")]
    columns, lines = read_rows(path, numbers)
    if set(columns) - set(known) or "case" not in columns:
        raise ValueError(
            f"{path} has columns {columns}; expected case and any of {', '.join(list(known.values())[1:])}"
        )
    filled: dict[str, int] = {}
    for line, row in lines:
        name = row.pop("case")
        if name not in rows:
            raise ValueError(f"{path} line {line} names case {name}, which has no image")
        if name in filled:
            raise ValueError(f"{path} lines {filled[name]} and {line} both name case {name}; remove one")
        filled[name] = line
        rows[name] = {known[key]: value for key, value in row.items() if value}
    return rows


def encode_density(row: Mapping[str, object], name: str, labels: Mapping[str, int], hu_window) -> numpy.ndarray:
    """Return the mean density wanted of each tissue in [-1, 1], NaN where none is asked for, float32, (tissues,)."""
    low, high = hu_window
    names = [tissue for tissue, value in sorted(labels.items(), key=lambda item: item[1]) if value]
    wanted = []
    for tissue in names:
        text = row.get(f"density_{tissue}")
        text = "nan" if text in (None, "") else text
        try:
            hu = float(text)
        except (TypeError, ValueError):
            hu = math.inf
        if not (math.isnan(hu) or low <= hu <= high):
            raise ValueError(f"density_{tissue} of {name} is {text}, but must be a number of HU from {low} to {high}")
        wanted.append(2 * (hu - low) / (high - low) - 1)
    return numpy.float32(wanted)


def case_seed(name: str, seed: int) -> int:
    """Return the seed of a case: a checksum of its name and the run's seed.

    Example:
        >>> case_seed("case012", 0) == case_seed("case012", 0) != case_seed("case012", 1)
        True
    """
    return zlib.crc32(f"{name}/{seed}".encode())
