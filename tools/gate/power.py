"""How often the gate rejects real tissue of patients it has not seen, and each of seven fakes in their place."""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from tools.data.datalist import Case
from tools.gate.fakes import fakes
from tools.gate.gate import MIN_VOXELS, Gate
from tools.tissues import pathological_tissues, tissue_labels

Scene = tuple[np.ndarray, np.ndarray]  # CT in HU, and where the tissue is said to be, bool; both of shape (W, H, D)


def unchanged_host(hu: np.ndarray, label: np.ndarray, value: int) -> Scene | None:
    """Return healthy lung that the map alone calls a tissue, as much as there is of the tissue; None without any."""
    return _renamed(hu, label, label == tissue_labels()["healthy"], value)


def another_tissue(hu: np.ndarray, label: np.ndarray, value: int) -> Scene | None:
    """Return the next other pathological tissue, called by this one's name; None without any."""
    others = [other for name, other in tissue_labels().items() if name in pathological_tissues() and other != value]
    most = max(others, key=lambda other: np.count_nonzero(label == other))
    return _renamed(hu, label, label == most, value)


def _renamed(hu: np.ndarray, label: np.ndarray, other: np.ndarray, value: int) -> Scene | None:
    """Return the other tissue in the square of a slice that holds most of it, as wide as this tissue's largest."""
    from scipy import ndimage

    if np.count_nonzero(other) < MIN_VOXELS:
        return None
    area = np.count_nonzero(label == value, axis=(0, 1)).max()
    edge = int(np.clip(np.sqrt(area), 16, 48))
    share = ndimage.uniform_filter(other.astype(np.float32), (edge, edge, 1), mode="constant")
    x, y, z = np.unravel_index(np.argmax(share), share.shape)
    square = np.zeros(other.shape, bool)
    square[max(x - edge // 2, 0) : x + edge // 2, max(y - edge // 2, 0) : y + edge // 2, z] = True
    return (hu, square & other) if np.count_nonzero(square & other) >= MIN_VOXELS else None


def scenes(hu: np.ndarray, label: np.ndarray, value: int, seed: int) -> Iterator[tuple[str, Scene]]:
    """Yield "real" and the name of each fake, and its scene, for one tissue of a case."""
    where = label == value
    yield "real", (hu, where)
    for name, filled in fakes(hu, where, seed):
        yield name, (filled, where)
    for fake in (unchanged_host, another_tissue):
        scene = fake(hu, label, value)
        if scene:
            yield fake.__name__, scene


def judge_fakes(training: list[Case], unseen: list[Case], seed: int) -> list[dict]:
    """Return, per tissue and kind, how many cases of unseen patients were judged and how many rejected.

    Args:
        training: Cases from which the gate learns.
        unseen: Cases of other patients; their real tissue must pass, fakes in its place must not.
        seed: Seed for the fakes.
    """
    labels = {name: tissue_labels()[name] for name in pathological_tissues()}
    gate = Gate(training, labels)
    counts: dict[tuple[str, str], list[int]] = {}
    for number, case in enumerate(tqdm(unseen, desc="showing fakes to the gate", unit="case", disable=None)):
        label, hu, _ = case.volumes()
        for name, value in labels.items():
            if name not in gate.real or np.count_nonzero(label == value) < MIN_VOXELS:
                continue
            for kind, (shown, where) in scenes(hu, label, value, seed + number):
                target = np.where(where, value, label)
                measured = gate.measure(f"{case.name}_{kind}_{name}", training[0].name, shown, target, where)
                judged = gate.judge(measured)[name]
                count = counts.setdefault((name, kind), [0, 0])
                count[0] += 1
                count[1] += not judged["accepted"]
                gate.forget()
    return [
        {"tissue": tissue, "kind": kind, "cases": cases, "rejected": rejected}
        for (tissue, kind), (cases, rejected) in counts.items()
    ]
