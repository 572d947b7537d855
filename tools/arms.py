"""The arms of a comparison: datalists that differ in their training items; and the check that no test patient leaks."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.files import InputError, read_json
from tools.nifti import case_name, load_labels, relative
from tools.verdicts import REFERENCE

TRAINING = -1  # the fold of an item that may be trained on
REPEATS_AT_MOST = 8
ENTROPY_GAIN = 1e-3  # nats; a repeat that evens out the tissues by less is not made


@dataclass(frozen=True)
class Arm:
    """Where an arm's training items come from.

    Attributes:
        method: of ``augment``, or None for real cases only.
        repeat: whether items with rare tissues are repeated.
    """

    method: str | None
    repeat: bool


ARMS = {
    REFERENCE: Arm(None, False),
    "oversampled": Arm(None, True),
    "copy_paste": Arm("copy_paste", False),
    "synthetic": Arm("diffusion", False),
    "synthetic_oversampled": Arm("diffusion", True),
}
# Folder of a method's datalist below fold<K>/; arms with the same method share it.
AUGMENTED = {"copy_paste": "augment_copy_paste", "diffusion": "augment_synthetic"}


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


def stages(datalist: dict, fold: int) -> dict[str, list[str]]:
    """Return which patients each stage of an arm was fitted on: the segmenter, and what ``augment`` says it fitted.

    Args:
        datalist: of the arm, from ``read_datalist``.
        fold: the held-out fold.

    Returns:
        Stage name to sorted patients.
    """
    training, _ = split(datalist, fold)
    fitted = {stage: sorted(map(str, names)) for stage, names in (datalist.get("fitted_on") or {}).items()}
    return {"segmenter": patients(training)} | fitted


def check_leak(datalist: dict, real: dict, fold: int, arm: str) -> dict[str, list[str]]:
    """Check that no stage of an arm has seen a held-out patient, and that the arm keeps the real cases as they are.

    Args:
        datalist: of the arm, from ``read_datalist``.
        real: the datalist given by the user, from ``read_datalist``.
        fold: the held-out fold.
        arm: name for the message.

    Returns:
        Stage name to the patients it was fitted on.

    Raises:
        InputError: naming the stage and the patients it shares with the held-out fold, or the cases that differ.
    """
    real_training, real_test = split(real, fold)
    training, test = split(datalist, fold)
    fitted = stages(datalist, fold)
    held_out = set(patients(real_test))
    for stage, names in fitted.items():
        shared = sorted(held_out & set(names))
        if shared:
            raise InputError(
                f"leak in arm {arm}, fold {fold}: stage {stage} was fitted on test patients {', '.join(shared)}"
            )
    names = {case_name(item["image"]) for item in real_training}
    case_patient = {case_name(item["image"]): item["patient"] for item in real_test}
    case_patient = {case: patient for case, patient in case_patient.items() if case not in names}
    from_test = sorted({case_patient[item["source"]] for item in training if item.get("source") in case_patient})
    if from_test:
        raise InputError(
            f"leak in arm {arm}, fold {fold}: synthetic cases were made of test patients {', '.join(from_test)}"
        )
    files = {item[key] for item in real_test for key in ("image", "label")}
    reused = sorted({item[key] for item in training for key in ("image", "label")} & files)
    if reused:
        raise InputError(f"leak in arm {arm}, fold {fold}: {reused[0]} is both a training and a test file")
    for name, wanted, found in (("test", real_test, test), ("training", real_training, training)):
        wanted_files = {(item["image"], item["label"]) for item in wanted}
        found_files = {(item["image"], item["label"]) for item in found if not item.get("synthetic")}
        if wanted_files != found_files or (name == "test" and any(item.get("synthetic") for item in found)):
            differing = sorted(wanted_files ^ found_files) or [("a synthetic case", "")]
            raise InputError(
                f"arm {arm}, fold {fold}: its real {name} cases differ from the datalist's ({differing[0][0]})"
            )
    return fitted


def augmented(directory: Path, real: dict, fold: int) -> dict:
    """Read what ``augment`` wrote and check that it was made for this fold.

    Raises:
        InputError: if another fold was held out, it does not say on which patients its parts were fitted, or its
            manifest names a case of a test patient as a source or as the donor of a lesion.
    """
    path = Path(directory) / "datalist.json"
    datalist = read_datalist(path)
    if datalist.get("held_out_fold") != fold:
        raise InputError(f"{path} was made with fold {datalist.get('held_out_fold')} held out, not fold {fold}")
    if not datalist.get("fitted_on"):
        raise InputError(
            f"{path} does not say what was fitted on which patients (fitted_on); a leak cannot be ruled out"
        )
    if datalist["labels"] != real["labels"]:
        raise InputError(f"{path} has labels {datalist['labels']}, but the datalist compared has {real['labels']}")
    training, test = split(real, fold)
    test_cases = {case_name(item["image"]) for item in test} - {case_name(item["image"]) for item in training}
    for line in read_manifest(Path(directory) / "manifest.jsonl"):
        for role, names in (
            ("source", [line["source"]]),
            ("donor", [donor["case"] for donor in line.get("donors", [])]),
        ):
            shared = sorted(test_cases & set(names))
            if shared:
                raise InputError(f"leak in {directory}: {line['case']} has the test case {shared[0]} as its {role}")
    return datalist


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


def presence(items: list[dict], labels: dict[str, int]) -> np.ndarray:
    """Return which pathological tissues each item's label map holds, shape (items, tissues), as booleans."""
    values = [value for name, value in labels.items() if name not in ("background", "healthy")]
    return np.array([[value in _values_in(item["label"], tuple(labels.items())) for value in values] for item in items])


@functools.cache
def _values_in(path: str, labels: tuple) -> frozenset[int]:
    """Return the values of a label map; remembered, because every seed asks for the same files."""
    return frozenset(np.unique(load_labels(Path(path), dict(labels))[0]).tolist())


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


def arm_datalist(source: dict, fold: int, directory: Path, repeat: bool) -> dict:
    """Return the datalist that a segmenter is trained with: training items in fold -1, test items in theirs.

    Args:
        source: the real datalist, or an augmented one, from ``read_datalist``.
        fold: the held-out fold.
        directory: folder where it will lie; paths become relative to it.
        repeat: whether to repeat items with rare tissues.
    """
    training, test = split(source, fold)
    times = repeats(presence(training, source["labels"])) if repeat else [1] * len(training)
    directory = Path(directory).resolve()

    def moved(item: dict, fold: int) -> dict:
        return item | {key: relative(item[key], directory) for key in ("image", "label")} | {"fold": fold}

    items = [moved(item, TRAINING) for item, count in zip(training, times) for _ in range(count)]
    return {
        "labels": source["labels"],
        "held_out_fold": fold,
        "fitted_on": stages(source, fold),
        "training": items + [moved(item, fold) for item in test],
    }
