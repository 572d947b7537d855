"""Does painted tissue pass for real? A classifier of tiles, and a limit that real tissue of unseen patients sets.

For each tissue a classifier tells tiles of real tissue from tiles of the fakes in ``fakes``, of healthy lung and of the
other tissues, all of the training patients. The score of a case is the mean of its tiles'. The limit comes from real
tissue of patients whom the classifier has not seen, so that 5 % of real cases fall below it. How well a segmenter finds
the tissue has no say: what is hard may be what one can learn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import special

from tools.bundles import load_script
from tools.gate.copies import HU_WINDOW, spread
from tools.gate.fakes import FAKES, fill
from tools.workflows.synthesizer import SYNTHESIZER

TILES = (16, 8)  # edges in voxels; a case is judged by the first that its tissue fills
TILES_PER_CASE = 40  # of one kind
FALSE_REJECTION = 0.05  # of real tissue
ORDERED_FROM = 20  # cases from which a limit is read off their order; below, it is that of a normal distribution
FEWEST_PATIENTS = 3
GROUPS = 5  # of patients, each scored by a classifier of the others
CLIP = 8.0  # log odds of a tile, so that one tile does not decide for a case
HEALTHY, REAL = "healthy", "real"

Features = dict[int, np.ndarray]  # edge of the tiles -> features, shape (tiles, features)


def tile_features(hu: np.ndarray, where: np.ndarray) -> Features:
    """Return the features of at most ``TILES_PER_CASE`` tiles of a tissue (bool) in a CT in HU, shapes (W, H, D)."""
    texture = load_script(SYNTHESIZER, "texture")
    found = {}
    for edge in TILES:
        cut = [texture.cut_tiles(hu[..., z], where[..., z], edge) for z in np.flatnonzero(where.any((0, 1)))]
        if not cut:
            found[edge] = np.zeros((0, len(texture.FEATURES)))
            continue
        values, inside = (spread(np.concatenate(parts), TILES_PER_CASE) for parts in zip(*cut))
        found[edge] = texture.tile_features(values, inside, HU_WINDOW)
    return found


@dataclass
class Sample:
    """What one training case says of one tissue."""

    owner: str  # patient
    kinds: dict[str, Features] = field(default_factory=dict)  # REAL, HEALTHY, the names of FAKES


def sample(owner: str, hu: np.ndarray, where: np.ndarray, healthy: Features, seed: int) -> Sample:
    """Return the tiles of a tissue and of its fakes; ``healthy`` are those of the case's healthy lung."""
    kinds = {REAL: tile_features(hu, where), HEALTHY: healthy}
    return Sample(owner, kinds | {name: tile_features(fill(name, hu, where, seed), where) for name in FAKES})


class Realness:
    """Judges whether tiles are of one tissue.

    Args:
        samples: Training cases with the tissue.
        others: Training cases with each of the other tissues; their real tiles are no examples of this one.
    """

    def __init__(self, samples: Sequence[Sample], others: Sequence[Sample]) -> None:
        self.samples, self.others = samples, others
        owners = sorted({one.owner for one in samples})
        self.models, self.limits, self.scores = {}, {}, {}
        if len(owners) < FEWEST_PATIENTS:
            return
        group = {owner: number % GROUPS for number, owner in enumerate(owners)}
        for edge in TILES:
            # the smaller tiles are needed only if a case has no larger ones; a painted one may have none
            scores = []
            for held_out in sorted(set(group.values())):
                model = self._fit(edge, {owner for owner in owners if group[owner] == held_out})
                for one in samples:
                    if model and group[one.owner] == held_out and len(one.kinds[REAL][edge]):
                        scores.append(mean_score(model, one.kinds[REAL][edge]))
            model = self._fit(edge, set())
            if model and len(scores) >= FEWEST_PATIENTS:
                self.models[edge], self.limits[edge], self.scores[edge] = model, lower_limit(scores), scores

    def _fit(self, edge: int, without: set[str]):
        """Return the classifier of all patients but some; None where there are no tiles of either side."""
        real, unreal = [], []
        for one in self.samples:
            if one.owner not in without:
                real.append(one.kinds[REAL][edge])
                unreal += [tiles[edge] for kind, tiles in one.kinds.items() if kind != REAL]
        unreal += [one.kinds[REAL][edge] for one in self.others if one.owner not in without]
        real, unreal = (np.concatenate(parts) if parts else np.zeros((0, 1)) for parts in (real, unreal))
        return load_script(SYNTHESIZER, "classifier").Classifier(real, unreal) if len(real) and len(unreal) else None

    def judge(self, features: Features) -> tuple[float, float]:
        """Return the score of a case and its limit, for the largest tiles that it has; NaN twice where it has none."""
        for edge in TILES:
            if edge in self.models and len(features[edge]):
                return mean_score(self.models[edge], features[edge]), self.limits[edge]
        return float("nan"), float("nan")


def mean_score(model, features: np.ndarray) -> float:
    """Return the mean log odds of some tiles."""
    return float(np.clip(model.score(features), -CLIP, CLIP).mean())


def lower_limit(scores: Sequence[float]) -> float:
    """Return the score below which ``FALSE_REJECTION`` of real cases fall.

    With many cases it is read off their order (Vovk et al., Algorithmic Learning in a Random World, 2005). With few it
    is the lower prediction limit of a normal distribution, by Student's t.

    Example:
        >>> lower_limit(range(39)), round(lower_limit([1.0, 2.0, 3.0]), 2)
        (1, -1.37)
    """
    ordered, number = sorted(scores), len(scores)
    if number >= ORDERED_FROM:
        return ordered[max(0, int(FALSE_REJECTION * (number + 1)) - 1)]
    width = float(special.stdtrit(number - 1, 1 - FALSE_REJECTION)) * np.std(ordered, ddof=1) * (1 + 1 / number) ** 0.5
    return float(np.mean(ordered) - width)
