"""What tissue of one case is like, real or painted, and the quality card that sets painted beside real tissue."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.spatial.distance import cdist

from tools.bundles import load_script
from tools.gate.copies import HU_WINDOW, Asked, spread
from tools.workflows.synthesizer import SYNTHESIZER

QUANTILES = (0.05, 0.5, 0.95)
TILES_DESCRIBED = 64  # of one tissue of one case, spread evenly
SLICES_DESCRIBED = 48  # among which they are looked for
NEIGHBOURS = 5
FEWEST_PLACES = 24  # on the border, for a ratio


@dataclass
class Tissue:
    """One tissue of one case."""

    case: str
    owner: str  # the patient
    voxels: int
    counts: np.ndarray  # of its voxels per bin of 1 HU over HU_WINDOW, shape (bins,)
    textures: np.ndarray  # features of some of its tiles, shape (N, F) as in ``scripts.texture``
    measures: dict[str, float] = field(default_factory=dict)  # NaN where it could not be measured
    region: Asked | None = None  # tiles to look for among those of other cases
    patch: Asked | None = None  # the same with their surroundings


def describe(case: str, owner: str, hu: np.ndarray, where: np.ndarray, around: np.ndarray) -> Tissue:
    """Return one tissue of a case with the measures that need no other case, in a CT in HU of shape (W, H, D).

    They are ``median_hu``, ``spread_hu`` (standard deviation) and :func:`seam_ratio`. The tissue, not empty, and the
    lung around it are bool of the same shape.
    """
    texture, voxels = load_script(SYNTHESIZER, "texture"), load_script(SYNTHESIZER, "voxel_measures")
    box = voxels.painted_box(where)
    hu, where, around = hu[box], where[box], around[box]
    inside = hu[where]
    slices = spread(np.flatnonzero(where.any((0, 1))), SLICES_DESCRIBED)
    cut = [texture.cut_tiles(hu[..., z], where[..., z]) for z in slices]
    tiles, insides = (spread(np.concatenate(parts), TILES_DESCRIBED) for parts in zip(*cut))
    measures = {
        "median_hu": float(np.median(inside)),
        "spread_hu": float(inside.std(dtype=np.float64)),
        "seam_ratio": seam_ratio(hu, where, around),
    }
    textures = texture.tile_features(tiles, insides, HU_WINDOW)
    return Tissue(case, owner, len(inside), voxels.hu_counts(inside, HU_WINDOW), textures, measures)


def seam_ratio(hu: np.ndarray, where: np.ndarray, around: np.ndarray) -> float:
    """Return how abruptly a tissue ends: the mean |HU step| across its border over that between the next voxels out.

    Of four voxels on a line, two inside and two outside: |second - third| over |first - fourth|, each averaged over the
    border. A ramp gives 1/3, a jump 1, a rim brighter or darker than both sides more. How much the tissue differs from
    what is around it, which depends on where it lies, has no say. Arguments as for :func:`describe`; NaN with fewer
    than FEWEST_PLACES places to measure at.
    """
    across, apart = [np.zeros(0)], [np.zeros(0)]
    for axis in (0, 1):
        lines, inner, outer = (np.moveaxis(array, axis, 0) for array in (hu, where, around))
        for near, far in ((inner, outer), (outer, inner)):
            border = near[:-3] & near[1:-2] & far[2:-1] & far[3:]
            across.append(np.abs(lines[2:-1][border] - lines[1:-2][border]))
            apart.append(np.abs(lines[3:][border] - lines[:-3][border]))
    across, apart = np.concatenate(across), np.concatenate(apart)
    if len(across) < FEWEST_PLACES:
        return float("nan")
    return float(across.mean() / max(apart.mean(), 1.0))


def out_of_distribution(textures: np.ndarray, reference: np.ndarray) -> float:
    """Return how far tiles lie from reference tiles: to the NEIGHBOURS-th nearest, median over the tiles.

    It is the root mean square over the features, shapes (N, F) and (M, F), in standard deviations of the reference; NaN
    without tiles, or with no more than NEIGHBOURS reference tiles.
    """
    if not len(textures) or len(reference) <= NEIGHBOURS:
        return float("nan")
    standardise = load_script(SYNTHESIZER, "texture").standardise
    apart = cdist(standardise(textures, reference), standardise(reference, reference))
    return float(np.median(np.partition(apart, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]) / textures.shape[1] ** 0.5)


def card(real: Sequence[Tissue], painted: Sequence[Tissue]) -> dict:
    """Return the quality of one tissue: painted beside real (not empty), and real beside real as the floor.

    The patients are taken alternately into two halves. The floor compares the real tissue of one half with that of the
    other; painting is compared in the same way, painted tissue in patients of one half with real tissue of the other.

    Returns:
        ``painted`` and ``real``, each with cases, voxels, hu_q05, hu_q50, hu_q95, laa950 (share below -950 HU) and the
        medians over the cases of the measures; ``texture_distance`` and ``hu_wasserstein`` (HU), each with its
        ``_floor``; ``auc``, how well a classifier trained on one half tells real from painted tiles of the other, .5
        where it cannot. None where a figure cannot be had.
    """
    owners = sorted({tissue.owner for tissue in real})
    sides = [set(owners[0::2]), set(owners[1::2])]
    halves = [[tissue for tissue in real if tissue.owner in side] for side in sides]
    drawn = [[tissue for tissue in painted if tissue.owner in side] for side in sides]
    result = {"painted": summary(painted), "real": summary(real)}
    result |= texture_distances(halves, drawn)
    result["auc"] = crossed_auc(halves, drawn)
    found = [hu_distance(halves[1 - side], drawn[side]) for side in (0, 1)]
    known = [value for value in found if np.isfinite(value)]
    result["hu_wasserstein"] = float(np.mean(known)) if known else float("nan")
    result["hu_wasserstein_floor"] = hu_distance(*halves)
    return none_for_nan(result)


def summary(tissues: Sequence[Tissue]) -> dict:
    """Return what :func:`card` says of one side."""
    found = {"cases": len(tissues), "voxels": sum(tissue.voxels for tissue in tissues)}
    if not tissues:
        return found
    counts = sum(tissue.counts for tissue in tissues)
    hu = load_script(SYNTHESIZER, "voxel_measures").quantiles(counts, QUANTILES, HU_WINDOW)
    found |= {f"hu_q{share * 100:02.0f}": value for share, value in zip(QUANTILES, hu)}
    low = load_script(SYNTHESIZER, "texture").LOW_ATTENUATION_HU - HU_WINDOW[0]
    found["laa950"] = float(counts[:low].sum() / counts.sum())
    for name in sorted({name for tissue in tissues for name in tissue.measures}):
        values = np.array([tissue.measures.get(name, np.nan) for tissue in tissues])
        found[name] = float(np.median(values[np.isfinite(values)])) if np.isfinite(values).any() else float("nan")
    return found


def hu_distance(first: Sequence[Tissue], second: Sequence[Tissue]) -> float:
    """Return the Wasserstein-1 distance in HU of two sets of cases, NaN if either is empty."""
    if not first or not second:
        return float("nan")
    pair = (torch.from_numpy(sum(tissue.counts for tissue in tissues)).double() for tissues in (first, second))
    return float(load_script(SYNTHESIZER, "hu_distance").wasserstein_1(*pair, bin_width=1))


def texture_distances(halves: list[Sequence[Tissue]], painted: list[Sequence[Tissue]]) -> dict[str, float]:
    """Return ``texture_distance`` and ``texture_distance_floor``, NaN where there are too few tiles.

    A distance depends on the number of tiles, so all sets are thinned to as many as the smallest has.
    """
    frechet = load_script(SYNTHESIZER, "texture").frechet_distance
    sides = [side for side in (0, 1) if painted[side]]
    if not all(halves) or not sides:
        return dict.fromkeys(("texture_distance", "texture_distance_floor"), float("nan"))
    real = [tiles_of(half) for half in halves]
    drawn = {side: tiles_of(painted[side]) for side in sides}
    reference, least = np.concatenate(real), min(len(rows) for rows in (*real, *drawn.values()))
    real = [spread(rows, least) for rows in real]
    distances = [frechet(real[1 - side], spread(drawn[side], least), reference) for side in sides]
    return {"texture_distance": float(np.mean(distances)), "texture_distance_floor": frechet(*real, reference)}


def crossed_auc(halves: list[Sequence[Tissue]], painted: list[Sequence[Tissue]]) -> float:
    """Return ``classifier.crossed_auc`` of the tiles of both halves, NaN where a half lacks real or painted ones."""
    if not all((*halves, *painted)):
        return float("nan")
    sets = [[tiles_of(painted[side]), tiles_of(halves[side])] for side in (0, 1)]
    return load_script(SYNTHESIZER, "classifier").crossed_auc(sets)


def tiles_of(tissues: Sequence[Tissue]) -> np.ndarray:
    """Return the features of all tiles of some cases."""
    return np.concatenate([tissue.textures for tissue in tissues])


def none_for_nan(values: dict) -> dict:
    """Return a dictionary in which None stands for numbers that are not finite, as JSON has no NaN."""
    if not isinstance(values, dict):
        return None if isinstance(values, float) and not np.isfinite(values) else values
    return {key: none_for_nan(value) for key, value in values.items()}
