"""The datalist: read, checked, and split into the training and the held-out cases of a fold."""

import functools
from pathlib import Path

import numpy as np

from tools.io.dicom import refuse_series
from tools.io.files import InputError, read_json
from tools.io.volume import case_name, load_labels

SYNTHETIC = -1  # the fold of painted cases, which the segmenter's sampler draws in a ratio to the real ones


def read_datalist(path: Path) -> dict:
    """Read a datalist, make its paths absolute, and check what a comparison relies on.

    Args:
        path: datalist.json.

    Returns:
        Its content with absolute ``image`` and ``label`` paths.

    Raises:
        InputError: if it has no labels or items, or an item lacks a key or is missing on disk.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict) or not content.get("labels") or not content.get("training"):
        raise InputError(f"{path} is not a datalist: it needs labels and a list training that is not empty")
    items = []
    for number, item in enumerate(content["training"]):
        missing = [key for key in ("image", "label", "fold", "patient") if item.get(key) is None]
        if missing:
            raise InputError(f"{path}: item {number} ({item.get('image', 'no image')}) lacks {', '.join(missing)}")
        files = {key: (path.parent / item[key]).resolve() for key in ("image", "label")}
        refuse_series([files], path)
        for file in files.values():
            if not file.is_file():
                raise InputError(f"{path}: item {number} names {file}, which does not exist")
        items.append(item | {"patient": str(item["patient"])} | {key: str(file) for key, file in files.items()})
    return content | {"training": items}


def check_real(datalist: dict, path: Path, folds: list[int]) -> None:
    """Raise InputError unless a datalist holds real cases only, whole patients per fold, and the folds wanted."""
    homes: dict[str, int] = {}
    for item in datalist["training"]:
        if item.get("synthetic"):
            raise InputError(
                f"{path}: {case_name(item['image'])} is synthetic; compare wants the datalist of the real cases"
            )
        if homes.setdefault(item["patient"], item["fold"]) != item["fold"]:
            raise InputError(
                f"{path}: patient {item['patient']} lies in fold {homes[item['patient']]} and in fold {item['fold']}; "
                "a patient must lie in one fold only"
            )
    held_out = datalist.get("held_out_fold")
    there = sorted({fold for fold in homes.values() if fold >= 0})
    for fold in folds:
        if fold not in there:
            raise InputError(f"{path} has no fold {fold}; it has {', '.join(map(str, there)) or 'none'}")
        if held_out is not None and held_out != fold:
            raise InputError(f"{path} was made with fold {held_out} held out, so fold {fold} cannot be tested with it")
        if set(homes.values()) == {fold}:
            raise InputError(f"{path} holds fold {fold} only; nothing is left to train on")


def split(datalist: dict, fold: int) -> tuple[list[dict], list[dict]]:
    """Return the items to train on and the items of the held-out fold."""
    items = datalist["training"]
    return [item for item in items if item["fold"] != fold], [item for item in items if item["fold"] == fold]


def patients(items: list[dict]) -> list[str]:
    """Return the patients of some items, sorted, each once."""
    return sorted({item["patient"] for item in items})


def tissues_in(item: dict, labels: dict[str, int]) -> list[str]:
    """Return the names of the tissues that an item's label map holds, background left out."""
    counts = _voxels(item["label"], tuple(labels.items()))
    return [name for name, value in labels.items() if name != "background" and counts[value]]


def presence(items: list[dict], labels: dict[str, int]) -> np.ndarray:
    """Return which pathological tissues each item's label map holds, shape (items, tissues), as booleans."""
    values = [value for name, value in labels.items() if name not in ("background", "healthy")]
    return np.array([[_voxels(item["label"], tuple(labels.items()))[value] > 0 for value in values] for item in items])


@functools.cache
def _voxels(path: str, labels: tuple) -> tuple[int, ...]:
    """Return the voxels of each label value in a map; remembered, because every seed asks for the same files."""
    values = load_labels(Path(path), dict(labels))[0]
    return tuple(np.bincount(values.ravel(), minlength=max(value for _, value in labels) + 1).tolist())


def subset(datalist: dict, fold: int, fraction: float, seed: int = 0) -> dict:
    """Return a datalist with a share of the training patients; a smaller share is part of a larger one.

    Args:
        datalist: from ``read_datalist``.
        fold: the held-out fold, which stays whole.
        fraction: of the training patients, above 0; at least one patient is kept.
        seed: of the order of the patients.
    """
    training, test = split(datalist, fold)
    names = patients(training)
    order = np.random.default_rng([seed, fold]).permutation(len(names))
    kept = {names[index] for index in order[: max(1, round(fraction * len(names)))]}
    return datalist | {"training": [item for item in training if item["patient"] in kept] + test}


def split_fold(datalist: Path, fold: int) -> tuple[list[dict], list[dict]]:
    """Return the training items and the held-out items of a datalist, with absolute paths.

    Raises:
        InputError: if an item lacks something, the fold holds no case or all, or a patient is on both sides.
    """
    content = read_json(datalist)
    items = []
    for number, item in enumerate(content.get("training", [])):
        lacking = [key for key in ("image", "label", "fold", "patient") if key not in item]
        if lacking:
            raise InputError(f"{datalist}: training item {number} has no {lacking[0]}; make it with tools dataset")
        folder = Path(datalist).absolute().parent
        items.append(item | {"image": str(folder / item["image"]), "label": str(folder / item["label"])})
    refuse_series(items, datalist)
    training = [item for item in items if item["fold"] != fold]
    held_out = [item for item in items if item["fold"] == fold]
    if not held_out or not training:
        folds = sorted({item["fold"] for item in items})
        raise InputError(f"{datalist} has folds {folds}; holding out fold {fold} leaves one side empty")
    both = {item["patient"] for item in training} & {item["patient"] for item in held_out}
    if both:
        raise InputError(f"patient {sorted(both)[0]} is in fold {fold} and in another; folds must keep patients whole")
    return training, held_out


def known_items(datalist: Path, fold: int | None) -> list[dict]:
    """Return the training items of a fold, or all items if there is none, with absolute paths."""
    if fold is not None:
        return split_fold(datalist, fold)[0]
    items, folder = read_json(datalist).get("training", []), datalist.absolute().parent
    if not items or any("image" not in item or "label" not in item or "patient" not in item for item in items):
        raise InputError(f"{datalist} lists no cases with image, label and patient; make it with tools dataset")
    items = [item | {"image": str(folder / item["image"]), "label": str(folder / item["label"])} for item in items]
    refuse_series(items, datalist)
    return items
