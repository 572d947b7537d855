"""Tissues and volumes drawn jointly: a new map follows a training case, one that is hard to segment more often."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np

from tools.data.datalist import Case, tissue_voxels
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
        dice: Tissue to the Dice of a segmenter that has not seen the patients it was asked about; None to follow all
            cases alike.
    """

    dice: dict[str, float] | None = None

    def draw(self, training: list[Case], rng: np.random.Generator) -> dict[str, float]:
        """Return tissue to volume in ml of the pathological tissues of a case, empty for one that has none."""
        weights = self.weights(training)
        case = training[rng.choice(len(training), p=weights / weights.sum())]
        held = tissues_ml(case)
        return {name: held[name] for name in pathological_tissues() if name in held}

    def weights(self, training: list[Case]) -> np.ndarray:
        """Return how often each case is followed: by the mean error, 1 - Dice, over the tissues that it holds."""
        if self.dice is None:
            return np.ones(len(training))
        errors = {name: max(LEAST_ERROR, 1 - value) for name, value in self.dice.items() if name != "healthy"}
        usual = float(np.mean(list(errors.values()))) if errors else 1.0
        found = []
        for case in training:
            own = [errors.get(name, usual) for name in pathological_tissues() if name in tissues_ml(case)]
            found.append(float(np.mean(own)) if own else usual)
        return np.array(found)
