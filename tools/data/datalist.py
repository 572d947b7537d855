"""The datalist: read, checked, and split into the training and the held-out cases of a fold."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.io.dicom import refuse_series
from tools.io.files import InputError, check_settings, read_json
from tools.io.volume import (
    canonical,
    canonical_spacing,
    case_name,
    load_ct,
    load_labels,
    relative,
)
from tools.tissues import tissue_labels

SYNTHETIC = -1  # the fold of painted cases, which the segmenter's sampler draws in a ratio to the real ones
ATTRIBUTES = ("severity", "age", "history")  # of a patient, which the synthesizer can be told


@dataclass(frozen=True)
class Case:
    """A CT and its tissue map, as a datalist names them."""

    image: Path  # CT in HU
    label: Path  # its tissue map
    patient: str
    fold: int  # in which the patient is held out, or ``SYNTHETIC``
    synthetic: bool = False  # whether it was painted
    about: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)  # as the datalist has it

    @property
    def name(self) -> str:
        """The CT's file name without its ending."""
        return case_name(self.image)

    @property
    def attributes(self) -> dict[str, object]:
        """What is known of the patient, by the names in ``ATTRIBUTES``."""
        return {name: self.about[name] for name in ATTRIBUTES if self.about.get(name) is not None}

    def item(self, folder: Path | None = None) -> dict:
        """Return the item to write into a datalist; its paths are relative to the datalist's folder, else absolute."""
        fields = {"image": str(self.image), "label": str(self.label), "patient": self.patient, "fold": self.fold}
        if folder is not None:
            fields |= {key: relative(fields[key], folder) for key in ("image", "label")}
        return dict(self.about) | fields

    def told(self, attributes: Mapping[str, list]) -> "Case":
        """Return the case without the attributes that a synthesizer cannot be told, as ``within`` says."""
        known = within(self.attributes, attributes)
        kept = {key: value for key, value in self.about.items() if key not in ATTRIBUTES or key in known}
        return replace(self, about=kept)

    def stored(self) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Image]:
        """Return HU, tissue map and the CT's image, in the stored orientation.

        Raises:
            InputError: if a file cannot be used, or the two do not lie in the same voxels.
        """
        hu, image = load_ct(self.image)
        label, _ = load_labels(self.label, tissue_labels(), like=image, like_path=self.image)
        return hu, label, image

    def volumes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return tissue map, HU and spacing in mm, in canonical orientation; errors as those of ``stored``."""
        hu, label, image = self.stored()
        return canonical(label, image.affine), canonical(hu, image.affine), canonical_spacing(image)


def within(known: Mapping[str, object], attributes: Mapping[str, list]) -> dict[str, object]:
    """Return the known attributes (by name) that a synthesizer can be told, in its own order.

    ``attributes``, as in the synthesizer's config, gives for each name [lowest, highest], or words.

    Example:
        >>> within({"age": 60, "severity": 0.7, "history": "none"}, {"age": [40, 80], "severity": [0, 0.5]})
        {'age': 60}
    """
    told = {}
    for name, allowed in attributes.items():
        value = known.get(name)
        if not allowed or value is None:
            continue
        if value in allowed if isinstance(allowed[0], str) else allowed[0] <= float(value) <= allowed[1]:
            told[name] = value
    return told


def read_datalist(path: Path) -> dict:
    """Read a datalist and check that all it names is there; its ``training`` becomes a list of ``Case``.

    Raises:
        InputError: if it has no labels or items, or an item lacks a key, holds text that MONAI would run, names a
            folder, or is missing on disk.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict) or not content.get("labels") or not content.get("training"):
        raise InputError(f"{path} is not a datalist: it needs labels and a list training that is not empty")
    if not isinstance(content["training"], list):
        raise InputError(f"{path} is not a datalist: training is no list; python -m tools dataset makes a datalist")
    cases = []
    for number, item in enumerate(content["training"]):
        if not isinstance(item, dict) or any(not isinstance(item.get(key, ""), str) for key in ("image", "label")):
            raise InputError(f"{path}: item {number} is {str(item)[:80]}, not a case with the files image and label")
        missing = [key for key in ("image", "label", "fold", "patient") if item.get(key) is None]
        if missing:
            raise InputError(
                f"{path}: item {number} ({item.get('image', 'no image')}) lacks {', '.join(missing)}; "
                "python -m tools dataset makes a datalist"
            )
        if not isinstance(item["fold"], int) or isinstance(item["fold"], bool):
            raise InputError(f"{path}: item {number} has fold {item['fold']!r}; expected 0, 1, 2, ...")
        check_settings([item.get(name) for name in ATTRIBUTES], path)  # the synthesizer's config will hold them
        image, label = (_absolute(path.parent / item[key]) for key in ("image", "label"))
        refuse_series([{"image": image}], path)
        for file in (image, label):
            if not file.is_file():
                raise InputError(f"{path}: item {number} names {file}, which does not exist")
        cases.append(Case(image, label, str(item["patient"]), item["fold"], bool(item.get("synthetic")), item))
    return content | {"training": cases}


def _absolute(path: Path) -> Path:
    """Return a path with the links among its folders followed; a file that is a link keeps its own name."""
    return path.parent.resolve() / path.name


def check_real(datalist: dict, path: Path, folds: list[int]) -> None:
    """Raise InputError unless a datalist holds real cases only, whole patients per fold, and the folds wanted."""
    for case in datalist["training"]:
        if case.synthetic:
            raise InputError(f"{path}: {case.name} is synthetic; compare wants the datalist of the real cases")
    check_folds(datalist, path, folds)


def check_folds(datalist: dict, path: Path, folds: list[int]) -> None:
    """Raise InputError unless real patients lie whole in a fold and each fold can be held out, painted cases or not."""
    homes: dict[str, int] = {}
    for case in datalist["training"]:
        if not case.synthetic and homes.setdefault(case.patient, case.fold) != case.fold:
            raise InputError(
                f"{path}: patient {case.patient} lies in fold {homes[case.patient]} and in fold {case.fold}; "
                "a patient must lie in one fold only"
            )
    fitted_fold = datalist.get("held_out_fold")
    there = sorted({fold for fold in homes.values() if fold >= 0})
    for fold in folds:
        if fold not in there:
            raise InputError(f"{path} has no fold {fold}; it has {', '.join(map(str, there)) or 'none'}")
        if fitted_fold is not None and fitted_fold != fold:
            raise InputError(
                f"{path} was made with fold {fitted_fold} held out, so fold {fold} cannot be tested with it"
            )
        training, held_out = split(datalist, fold)
        if not training:
            raise InputError(f"{path} holds fold {fold} only; nothing is left to train on")
        both = sorted(set(patients(training)) & set(patients(held_out)))
        if both:
            raise InputError(f"{path}: patient {both[0]} is painted from and tested in fold {fold}")


def read_fold(path: Path, fold: int | None) -> tuple[list[Case], list[Case]]:
    """Return the training cases and the held-out cases of a fold of a datalist; all train if the fold is None.

    Raises:
        InputError: if the datalist cannot be read, the fold holds no case or all, or a patient is on both sides.
    """
    datalist = read_datalist(path)
    if fold is not None:
        check_folds(datalist, path, [fold])
    return split(datalist, fold)


def split(datalist: dict, fold: int | None) -> tuple[list[Case], list[Case]]:
    """Return the cases to train on and the cases of the held-out fold; of None no case is held out."""
    cases = datalist["training"]
    return [case for case in cases if case.fold != fold], [case for case in cases if case.fold == fold]


def patients(cases: list[Case]) -> list[str]:
    """Return the patients of some cases, sorted, each once."""
    return sorted({case.patient for case in cases})


def tissues_in(case: Case, labels: dict[str, int]) -> list[str]:
    """Return the names of the tissues that a case's map holds, background left out."""
    counts = tissue_voxels(case, labels)
    return [name for name, value in labels.items() if name != "background" and counts[value]]


def presence(cases: list[Case], labels: dict[str, int]) -> np.ndarray:
    """Return which pathological tissues each case's map holds, shape (cases, tissues), as booleans."""
    values = [value for name, value in labels.items() if name not in ("background", "healthy")]
    return np.array([[tissue_voxels(case, labels)[value] > 0 for value in values] for case in cases])


def tissue_voxels(case: Case, labels: dict[str, int]) -> tuple[int, ...]:
    """Return the voxels of each label value in a case's map."""
    return _voxels(case.label, tuple(labels.items()))


@functools.cache
def _voxels(path: Path, labels: tuple) -> tuple[int, ...]:
    """Return the voxels of each label value in a map; remembered, because every seed asks for the same files."""
    values = load_labels(path, dict(labels))[0]
    return tuple(np.bincount(values.ravel(), minlength=max(value for _, value in labels) + 1).tolist())


def subset(datalist: dict, fold: int, fraction: float, seed: int = 0, count: int | None = None) -> dict:
    """Return a datalist with a share of the training patients, one at least; a smaller share is part of a larger one.

    The held-out fold stays whole; the seed draws the order of the patients; ``count`` of them are taken if it is given.
    """
    training, test = split(datalist, fold)
    names = patients(training)
    order = np.random.default_rng([seed, fold]).permutation(len(names))
    kept = {names[index] for index in order[: count or max(1, round(fraction * len(names)))]}
    return datalist | {"training": [case for case in training if case.patient in kept] + test}
