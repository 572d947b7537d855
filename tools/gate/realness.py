"""Does painted tissue pass for real? A classifier of tiles, and a limit that real tissue of unseen patients sets.

For each tissue a classifier tells tiles of real tissue from tiles of the fakes in ``fakes``, of healthy lung and of the
other tissues, all of the training patients. The score of a case is the mean of its tiles'. The limit comes from real
tissue of patients whom the classifier has not seen, so that 5 % of real cases fall below it. How well a segmenter finds
the tissue has no say: what is hard may be what one can learn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage, special

from tools.bundles import load_script
from tools.gate.copies import HU_WINDOW, box_of, spread
from tools.gate.fakes import REACH, fakes
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


@dataclass(frozen=True)
class Tiles:
    """Where some tiles of a tissue lie in a CT; N tiles of T x T voxels."""

    corners: np.ndarray  # x, y and slice, shape (N, 3); a tile may reach beyond the CT
    inside: np.ndarray  # which of their voxels lie in the tissue, bool, shape (N, T, T)

    def cut(self, hu: np.ndarray) -> np.ndarray:
        """Return the tiles of a CT in HU, float32, shape (N, T, T); beyond the CT, where no tissue is, any HU."""
        steps = np.arange(self.inside.shape[1])
        x, y = ((self.corners[:, axis, None] + steps).clip(0, hu.shape[axis] - 1) for axis in (0, 1))
        return hu[x[:, :, None], y[:, None, :], self.corners[:, 2, None, None]].astype(np.float32)


def tiles(where: np.ndarray) -> dict[int, Tiles]:
    """Return at most ``TILES_PER_CASE`` tiles of each edge of ``TILES`` in a tissue (bool), shape (W, H, D)."""
    texture, margin = load_script(SYNTHESIZER, "texture"), max(TILES)
    box = box_of(where, 0)
    where, offset = where[box], (box[0].start - margin, box[1].start - margin, 0)
    found: dict[int, list[np.ndarray]] = {edge: [np.zeros((0, 4), int)] for edge in TILES}
    slices = {}
    for z in np.flatnonzero(where.any((0, 1))):
        slices[z] = np.pad(ndimage.label(where[..., z])[0], margin)
        boxes = ndimage.find_objects(slices[z])
        for edge in TILES:
            places = texture.tile_places(slices[z], boxes, edge)
            found[edge].append(np.insert(places, 2, z, axis=1))
    chosen = {}
    for edge, parts in found.items():
        places = spread(np.concatenate(parts), TILES_PER_CASE)
        inside = [slices[z][x : x + edge, y : y + edge] == piece for x, y, z, piece in places]
        chosen[edge] = Tiles(places[:, :3] + offset, np.reshape(inside, (-1, edge, edge)).astype(bool))
    return chosen


def features(hu: np.ndarray, places: dict[int, Tiles]) -> Features:
    """Return the features of some tiles of a CT in HU."""
    describe = load_script(SYNTHESIZER, "texture").tile_features
    return {edge: describe(some.cut(hu), some.inside, HU_WINDOW) for edge, some in places.items()}


def tile_features(hu: np.ndarray, where: np.ndarray) -> Features:
    """Return the features of at most ``TILES_PER_CASE`` tiles of a tissue (bool) in a CT in HU, shapes (W, H, D)."""
    return features(hu, tiles(where))


@dataclass
class Sample:
    """What one training case says of one tissue."""

    owner: str  # patient
    kinds: dict[str, Features] = field(default_factory=dict)  # REAL, HEALTHY, the names of ``fakes.FAKES``


def sample(owner: str, hu: np.ndarray, where: np.ndarray, healthy: Features, seed: int) -> Sample:
    """Return the tiles of a tissue and of its fakes; ``healthy`` are those of the case's healthy lung."""
    box = box_of(where, REACH)
    places = tiles(where[box])
    kinds = {REAL: features(hu[box], places), HEALTHY: healthy}
    return Sample(owner, kinds | {name: features(fake, places) for name, fake in fakes(hu, where, seed, box)})


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
