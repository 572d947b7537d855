"""The arms of a comparison: what each trains the segmenter on, and everything else held equal."""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tools.dicom import refuse_series
from tools.files import InputError, read_json
from tools.nifti import case_name, load_labels, relative
from tools.verdicts import REFERENCE

SYNTHETIC = -1  # the fold of painted cases, which the segmenter's sampler draws in a ratio to the real ones
REPEATS_AT_MOST = 8
ENTROPY_GAIN = 1e-3  # nats; a repeat that evens out the tissues by less is not made
WEIGHTS = (0.25, 4.0)  # bounds of the factor by which a class-weighted loss changes a tissue's weight


@dataclass(frozen=True)
class Arm:
    """What an arm trains on.

    Attributes:
        method: of ``augment``, or None for real cases only.
        filtered: whether cases that the quality gate rejected are left out.
        oversampled: whether real cases with rare tissues are repeated.
        weighted: whether rare tissues weigh more in the loss.
        alone: whether the real cases are left out.
    """

    method: str | None = None
    filtered: bool = False
    oversampled: bool = False
    weighted: bool = False
    alone: bool = False


_METHODS = {
    "copy_paste": Arm("copy_paste"),
    "no_ablation": Arm("no_ablation"),
    "konz": Arm("konz"),
    "cbmat": Arm("cbmat"),
    "cbmat_filter": Arm("cbmat", filtered=True),
}
ARMS = {
    REFERENCE: Arm(),
    "oversampled": Arm(oversampled=True),
    "class_weighted": Arm(weighted=True),
    **_METHODS,
    **{f"{name}_oversampled": replace(arm, oversampled=True) for name, arm in _METHODS.items()},
    **{f"{name}_weighted": replace(arm, weighted=True) for name, arm in _METHODS.items()},
    "synthetic_only": Arm("cbmat", filtered=True, alone=True),
}


def arm_key(name: str, ratio: float = 1.0) -> str:
    """Return the name of an arm's runs: the arm, and the ratio of synthetic to real draws where it is not 1.

    Example:
        >>> arm_key("real", 0.5), arm_key("cbmat", 1), arm_key("cbmat", 0.5), arm_key("synthetic_only", 2)
        ('real', 'cbmat', 'cbmat_x0.5', 'synthetic_only')
    """
    mixed = ARMS[name].method is not None and not ARMS[name].alone
    return f"{name}_x{ratio:g}" if mixed and ratio != 1 else name


def arm_name(key: str) -> str:
    """Return the name of the arm behind a key, without its ratio.

    Example:
        >>> arm_name("cbmat_filter_x0.5"), arm_name("real")
        ('cbmat_filter', 'real')
    """
    return key.partition("_x")[0]


def arm_of(key: str) -> tuple[Arm, float]:
    """Return the arm and the ratio behind a key.

    Raises:
        InputError: if there is no such arm.

    Example:
        >>> arm_of("cbmat_x0.5")[1], arm_of("real")[1]
        (0.5, 1.0)
    """
    name, ratio = arm_name(key), key.partition("_x")[2]
    if name not in ARMS:
        raise InputError(f"there is no arm {name!r}; there are {', '.join(ARMS)}")
    return ARMS[name], float(ratio or 1)


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


def read_manifest(path: Path) -> list[dict]:
    """Read the manifest that ``augment`` wrote, one dict per painted case.

    Raises:
        InputError: if it is missing or a line is damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; run augment again")
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            line["case"], line["source"], line["tissues"], line["accepted"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} line {number} is damaged: {error!r}") from None
        lines.append(line)
    return lines


def tissues_in(item: dict, labels: dict[str, int]) -> list[str]:
    """Return the names of the tissues that an item's label map holds, background left out."""
    counts = _voxels(item["label"], tuple(labels.items()))
    return [name for name, value in labels.items() if name != "background" and counts[value]]


def presence(items: list[dict], labels: dict[str, int]) -> np.ndarray:
    """Return which pathological tissues each item's label map holds, shape (items, tissues), as booleans."""
    values = [value for name, value in labels.items() if name not in ("background", "healthy")]
    return np.array([[_voxels(item["label"], tuple(labels.items()))[value] > 0 for value in values] for item in items])


def repeats(present: np.ndarray, at_most: int = REPEATS_AT_MOST) -> list[int]:
    """Choose how often to repeat each item so that every tissue occurs in about equally many.

    Greedy: repeat the item that raises the entropy of the tissue counts most, until none helps.

    Args:
        present: which tissues each item holds, shape (items, tissues).
        at_most: largest number of occurrences of one item.

    Returns:
        Occurrences of each item, one at least.

    Example: four items with tissue A, one with tissue B
        >>> repeats(np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1]]))
        [1, 1, 1, 1, 4]
    """
    present = np.asarray(present, float)
    present = present[:, present.any(axis=0)]
    times = np.ones(len(present), int)
    while present.size:
        counts = times @ present
        gains = np.where(times < at_most, _entropy(counts + present) - _entropy(counts), 0)
        best = max(range(len(times)), key=lambda index: (round(gains[index], 9), -times[index]))
        if gains[best] < ENTROPY_GAIN:
            break
        times[best] += 1
    return times.tolist()


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Return the entropy in nats along the last axis."""
    share = counts / counts.sum(axis=-1, keepdims=True)
    return -(share * np.log(share)).sum(axis=-1)


def arm_datalist(source: dict, fold: int, directory: Path, arm: Arm) -> dict:
    """Return the datalist that an arm's segmenter gets.

    Real cases keep their fold, painted ones have fold -1; the held-out cases come last.

    Args:
        source: the real datalist, or one that ``augment`` wrote, from ``read_datalist``.
        fold: the held-out fold.
        directory: folder where it will lie; paths become relative to it.
        arm: decides which cases are kept and which are repeated.
    """
    training, test = split(source, fold)
    real = [item for item in training if not item.get("synthetic")]
    painted = [item for item in training if item.get("synthetic")]
    times = repeats(presence(real, source["labels"])) if arm.oversampled else [1] * len(real)
    real = [] if arm.alone else [item for item, count in zip(real, times) for _ in range(count)]
    directory = Path(directory).resolve()

    def moved(item: dict) -> dict:
        return item | {key: relative(item[key], directory) for key in ("image", "label")}

    items = [moved(item) for item in real] + [moved(item) | {"fold": SYNTHETIC} for item in painted]
    return {
        "labels": source["labels"],
        "held_out_fold": fold,
        "training": items + [moved(item) for item in test],
    }


def tissue_weights(training: list[dict], labels: dict[str, int], weights: list[float]) -> list[float]:
    """Return the weights of a class-weighted loss: those of the config times median-frequency balancing.

    A pathological tissue's factor is the median share over its own (Eigen and Fergus, ICCV 2015, section 6.3.2); its
    share is its voxels over all lung voxels of the cases that hold it. Bounded by ``WEIGHTS``.

    Args:
        training: real items, with absolute paths.
        labels: tissue name to value.
        weights: of the config, one per label value.
    """
    shares = {}
    for name, value in labels.items():
        if name in ("background", "healthy"):
            continue
        counts = [_voxels(item["label"], tuple(labels.items())) for item in training]
        having = [count for count in counts if count[value]]
        if having:
            shares[value] = sum(count[value] for count in having) / sum(sum(count[1:]) for count in having)
    middle = float(np.median(list(shares.values()))) if shares else 1.0
    return [
        round(weight * float(np.clip(middle / shares[value], *WEIGHTS)), 4) if value in shares else weight
        for value, weight in enumerate(weights)
    ]


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
