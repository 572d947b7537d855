"""Tissues and volumes drawn jointly: a new map follows a training case, one that is hard to segment more often."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.data.datalist import Case, tissue_voxels
from tools.io.files import InputError, read_json
from tools.io.volume import canonical_spacing
from tools.tissues import pathological_tissues, tissue_labels

LEAST_ERROR = 0.05  # 1 - Dice; a tissue that is found well is still followed


def tissues_ml(case: Case) -> dict[str, float]:
    """Return tissue to volume in ml of the lung's tissues that a case holds, the healthy one included."""
    voxel_ml = float(np.prod(canonical_spacing(nib.load(case.label)))) / 1000
    counts = tissue_voxels(case, tissue_labels())
    return {name: counts[value] * voxel_ml for name, value in tissue_labels().items() if value and counts[value]}


def lung_ml(case: Case) -> float:
    """Return the volume of a case's lungs in ml."""
    return sum(tissues_ml(case).values())


@dataclass(frozen=True)
class Followed:
    """Draws the training case that a new map follows.

    Attributes:
        dice: Tissue to the Dice of a segmenter that has not seen the patients it was asked about; None to ask for none.
        look_alikes: Tissue to the tissues that this segmenter takes it for, each with the Dice that it loses by that;
            None to ask for none.
    """

    dice: dict[str, float] | None = None
    look_alikes: dict[str, dict[str, float]] | None = None

    def draw(self, training: list[Case], rng: np.random.Generator) -> tuple[Case, dict[str, float]]:
        """Return a case, and the volume in ml of each pathological tissue that it holds, empty for one without any."""
        weights = self.weights(training)
        case = training[rng.choice(len(training), p=weights / weights.sum())]
        held = tissues_ml(case)
        return case, {name: held[name] for name in pathological_tissues() if name in held}

    def weights(self, training: list[Case]) -> np.ndarray:
        """Return how often each case is followed: by the mean over the tissues that it holds, or the product of two.

        The first is the error, 1 - Dice. The second is the Dice that tissues lose for which the case's are taken and
        which it lacks, so that it shows what looks like them without them. Neither counts as less than ``LEAST_ERROR``.
        """
        held = [[name for name in pathological_tissues() if name in tissues_ml(case)] for case in training]
        weights = np.ones(len(training))
        if self.dice is not None:
            errors = {name: 1 - value for name, value in self.dice.items() if name != "healthy"}
            weights *= [_mean(errors, own, errors) for own in held]
        if self.look_alikes is not None:
            usual = _lost(self.look_alikes, [])
            weights *= [_mean(_lost(self.look_alikes, own), own, usual) for own in held]
        return weights


def _lost(look_alikes: dict[str, dict[str, float]], held: list[str]) -> dict[str, float]:
    """Return tissue to the Dice that others lose by it, those left out that are held beside it."""
    return {
        name: sum(lost for other, lost in others.items() if other not in held) for name, others in look_alikes.items()
    }


def _mean(errors: dict[str, float], held: list[str], known: dict[str, float]) -> float:
    """Return the mean error of the tissues held; one without an error, or none held, has the mean of those known."""
    usual = float(np.mean([max(LEAST_ERROR, error) for error in known.values()])) if known else 1.0
    return float(np.mean([max(LEAST_ERROR, errors[name]) if name in errors else usual for name in held] or [usual]))


def read_dice(path: Path) -> dict[str, float]:
    """Return tissue to Dice from the key ``dice`` of a JSON file; InputError if it has no numbers from 0 to 1."""
    found = read_json(path).get("dice")
    if not _is_share(found):
        raise InputError(f"{path} has no dice with a number from 0 to 1 for each tissue")
    return {str(name): float(value) for name, value in found.items()}


def read_look_alikes(path: Path) -> dict[str, dict[str, float]]:
    """Return tissue to those that it is taken for, with the Dice lost, from the key ``look_alikes`` of a JSON file.

    Raises:
        InputError: if it has no numbers from 0 to 1.
    """
    found = read_json(path).get("look_alikes")
    if not isinstance(found, dict) or not found or not all(_is_share(others) for others in found.values()):
        raise InputError(f"{path} has no look_alikes with a number from 0 to 1 for each tissue that one is taken for")
    return found


def _is_share(found: object) -> bool:
    """Return whether something is a dictionary of numbers from 0 to 1, one at least."""
    numbers = found.values() if isinstance(found, dict) else ()
    return bool(numbers) and all(isinstance(value, int | float) and 0 <= value <= 1 for value in numbers)
