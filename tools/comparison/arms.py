"""The arms of a comparison: what each trains the segmenter on, and everything else held equal."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tools.data.datalist import SYNTHETIC, Case, presence, split, tissue_voxels
from tools.io.files import InputError
from tools.painting.manifest import FREE_METHODS
from tools.tissues import words

REFERENCE = "real"
HEADROOM = "more_real"  # what it gains is what a perfect generator could give
REPEATS_AT_MOST = 8
ENTROPY_GAIN = 1e-3  # nats; a repeat that evens out the tissues by less is not made
WEIGHTS = (0.25, 4.0)  # bounds of the factor by which a class-weighted loss changes a tissue's weight


@dataclass(frozen=True)
class Arm:
    """What an arm trains on.

    Attributes:
        method: Method of ``augment``, or None for real cases only.
        filtered: Whether cases that the quality gate rejected are left out.
        oversampled: Whether real cases with rare tissues are repeated.
        weighted: Whether rare tissues weigh more in the loss.
        alone: Whether the real cases are left out.
        longer: Whether it takes the steps that the generator's compute would buy.
        augmented: Whether pictures are sharpened and made noisier in training, as by other kernels.
        more: Whether real cases that were held back are trained on too.
        started: Whether the training starts from given weights instead of random ones.
    """

    method: str | None = None
    filtered: bool = False
    oversampled: bool = False
    weighted: bool = False
    alone: bool = False
    longer: bool = False
    augmented: bool = False
    more: bool = False
    started: bool = False


_METHODS = {
    "copy_paste": Arm("copy_paste"),
    "drawn": Arm("drawn"),
    "no_ablation": Arm("no_ablation"),
    "konz": Arm("konz"),
    "cbmat": Arm("cbmat"),
    "cbmat_filter": Arm("cbmat", filtered=True),
}
_FROM_SCRATCH = {
    REFERENCE: Arm(),
    "oversampled": Arm(oversampled=True),
    "class_weighted": Arm(weighted=True),
    "sharpened": Arm(augmented=True),
    "longer": Arm(longer=True),
    HEADROOM: Arm(more=True),
    **_METHODS,
    **{f"{name}_oversampled": replace(arm, oversampled=True) for name, arm in _METHODS.items()},
    **{f"{name}_weighted": replace(arm, weighted=True) for name, arm in _METHODS.items()},
    "synthetic_only": Arm("cbmat", filtered=True, alone=True),
}
STARTED = "_started"
ARMS = _FROM_SCRATCH | {f"{name}{STARTED}": replace(arm, started=True) for name, arm in _FROM_SCRATCH.items()}


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
        raise InputError(no_arm(name))
    return ARMS[name], float(ratio or 1)


def no_arm(name: str) -> str:
    """Return the sentence for a name that is no arm's."""
    return f"there is no arm {name!r}; there are {', '.join(_FROM_SCRATCH)}, and each with {STARTED}"


def repeats(present: np.ndarray, at_most: int = REPEATS_AT_MOST) -> list[int]:
    """Choose how often to repeat each item so that every tissue occurs in about equally many.

    Greedy: repeat the item that raises the entropy of the tissue counts most, until none helps.

    Args:
        present: Which tissues each item holds, shape (items, tissues).
        at_most: Largest number of occurrences of one item.

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
        source: The real datalist, or one that ``augment`` wrote, from ``read_datalist``.
        fold: The held-out fold.
        directory: Folder where it will lie; paths become relative to it.
        arm: Decides which cases are kept and which are repeated.
    """
    training, test = split(source, fold)
    real = [case for case in training if not case.synthetic]
    painted = [replace(case, fold=SYNTHETIC) for case in training if case.synthetic]
    times = repeats(presence(real, source["labels"])) if arm.oversampled else [1] * len(real)
    real = [] if arm.alone else [case for case, count in zip(real, times) for _ in range(count)]
    items = [case.item(directory) for case in real + painted + test]
    return {"labels": source["labels"], "held_out_fold": fold, "training": items}


def tissue_weights(training: list[Case], labels: dict[str, int], weights: list[float]) -> list[float]:
    """Return the weights of a class-weighted loss: those of the config times median-frequency balancing.

    A pathological tissue's factor is the median share over its own (Eigen and Fergus, ICCV 2015, section 6.3.2); its
    share is its voxels over all lung voxels of the cases that hold it. Bounded by ``WEIGHTS``.

    Args:
        training: Real cases.
        labels: Tissue name to value.
        weights: Weights of the config, one per label value.
    """
    shares = {}
    for name, value in labels.items():
        if name in ("background", "healthy"):
            continue
        counts = [tissue_voxels(case, labels) for case in training]
        having = [count for count in counts if count[value]]
        if having:
            shares[value] = sum(count[value] for count in having) / sum(sum(count[1:]) for count in having)
    middle = float(np.median(list(shares.values()))) if shares else 1.0
    return [
        round(weight * float(np.clip(middle / shares[value], *WEIGHTS)), 4) if value in shares else weight
        for value, weight in enumerate(weights)
    ]


ARM_TITLES = {
    "real": "real only",
    "sharpened": "sharpened and noisier",
    "longer": "real only, longer",
    HEADROOM: "more real patients",
    "oversampled": "oversampled",
    "class_weighted": "class-weighted loss",
    "copy_paste": "copy-paste",
    "drawn": "drawn as the phantom's",
    "no_ablation": "painted, no ablation",
    "konz": "painted, Konz ablation",
    "cbmat": "painted, CBMAT",
    "cbmat_filter": "painted, CBMAT, filtered",
    "synthetic_only": "painted cases only",
}
ENDINGS = {
    STARTED: ", from start weights",
    "_oversampled": " + oversampled",
    "_weighted": " + class-weighted loss",
}


def arm_title(key: str) -> str:
    """Return an arm's key in words.

    Example:
        >>> arm_title("cbmat_filter_oversampled_x0.5"), arm_title("cbmat_weighted")
        ('painted, CBMAT, filtered + oversampled, ratio 0.5', 'painted, CBMAT + class-weighted loss')
        >>> arm_title("class_weighted_started")
        'class-weighted loss, from start weights'
    """
    name, _, ratio = key.partition("_x")
    added = ""
    for ending, told in ENDINGS.items():
        if name.endswith(ending) and name not in ARM_TITLES:
            name, added = name.removesuffix(ending), told + added
    title = ARM_TITLES.get(name, words(name)) + added
    return f"{title}, ratio {ratio}" if ratio else title


def is_painted(key: str) -> bool:
    """Return whether an arm holds cases that a synthesizer painted.

    Example:
        >>> is_painted("cbmat_filter_oversampled"), is_painted("copy_paste_oversampled"), is_painted("real")
        (True, False, False)
    """
    return arm_of(key)[0].method not in (None, *FREE_METHODS)
