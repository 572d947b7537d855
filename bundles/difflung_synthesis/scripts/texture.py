"""Texture of tissue in regions of any outline, and how far apart two sets of textures lie.

A region is cut into tiles, a tile is described by a few radiomic features of the voxels inside the region, and sets of
such descriptions are compared. Legend of shapes: N tiles, T voxels along the edge of a tile, F features.
"""

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage.feature import graycomatrix, graycoprops

LOW_ATTENUATION_HU = -950  # darker voxels are counted as emphysema in the CT literature
SIGMAS = (1, 2, 4)  # of the differences of Gaussians, voxels
STEPS = (1, 2)  # between the two voxels of a co-occurrence, voxels
PROPERTIES = ("contrast", "homogeneity", "correlation", "energy", "entropy")
LEVELS = 32  # grey levels of the co-occurrences
FEATURES = (
    *("mean", "std", "skewness", "kurtosis", "q05", "q95", "low_attenuation"),
    *("gradient_mean", "gradient_std"),
    *(f"band_{sigma}" for sigma in SIGMAS),
    *(f"{name}_{step}" for name in PROPERTIES for step in STEPS),
)
FEWEST_TILES = 16  # below this many tiles a distance says more about the sample than about the texture


def cut_tiles(hu: np.ndarray, mask: np.ndarray, tile: int = 16, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Cut the region of one slice into disjoint tiles.

    Each connected piece of the region has a grid of its own, centred on its box, so that a small piece is not split
    among tiles none of which it fills.

    Args:
        hu: Axial slice in HU, shape (W, H).
        mask: Region, bool, the same shape.
        tile: Edge T of a tile, voxels.
        share: Share of a tile's voxels that must lie in its piece of the region.

    Returns:
        HU, float32, shape (N, T, T), and which voxels lie inside the piece, bool, the same shape. N is 0 where the
        region is too small or too thin.

    Raises:
        ValueError: If the shapes differ or are not those of a slice.
    """
    if hu.ndim != 2 or hu.shape != mask.shape:
        raise ValueError(f"a slice and its mask must share one shape (W, H), but have {hu.shape} and {mask.shape}")
    hu = np.pad(hu, tile)
    pieces = np.pad(ndimage.label(mask)[0], tile)
    places = tile_places(pieces, ndimage.find_objects(pieces), tile, share)
    values = [hu[i : i + tile, j : j + tile] for i, j, _ in places]
    insides = [pieces[i : i + tile, j : j + tile] == piece for i, j, piece in places]
    shape = (len(values), tile, tile)
    return np.reshape(values, shape).astype(np.float32), np.reshape(insides, shape).astype(bool)


def tile_places(pieces: np.ndarray, boxes: list[tuple[slice, slice]], tile: int, share: float = 0.5) -> np.ndarray:
    """Return where the tiles of :func:`cut_tiles` lie: corner and number of the piece, int, shape (N, 3).

    Args:
        pieces: Number of each voxel's connected piece, 0 outside, shape (W, H), with ``tile`` voxels of 0 all round.
        boxes: Box of each piece.
        tile: Edge T of a tile, voxels.
        share: Share of a tile's voxels that must lie in its piece of the region.
    """
    places = [np.zeros((0, 3), int)]
    for piece, box in enumerate(boxes, start=1):
        if (box[0].stop - box[0].start) * (box[1].stop - box[1].start) < share * tile**2:
            continue
        rows, columns = (_tile_starts(side, tile) for side in box)
        grid = pieces[rows.start : rows.stop, columns.start : columns.stop] == piece
        filled = grid.reshape(len(rows), tile, len(columns), tile).sum((1, 3))
        i, j = np.nonzero(filled >= share * tile**2)
        places.append(np.column_stack([rows.start + i * tile, columns.start + j * tile, np.full(len(i), piece)]))
    return np.concatenate(places)


def _tile_starts(box: slice, tile: int) -> range:
    """Return the first voxels of the tiles that best fit an interval, around its middle."""
    count = max(1, round((box.stop - box.start) / tile))
    first = (box.start + box.stop - count * tile) // 2
    return range(first, first + count * tile, tile)


def tile_features(values: np.ndarray, inside: np.ndarray, hu_window: tuple[float, float] = (-1024, 300)) -> np.ndarray:
    """Describe tiles by their voxels inside the region alone.

    First-order statistics; the in-plane gradient's magnitude; the deviation of three bands between Gaussians, by
    normalised convolution (Knutsson and Westin, CVPR 1993); and grey-level co-occurrences (Haralick et al., 1973),
    averaged over four directions, with grey levels that split ``hu_window`` evenly and so compare between cases.

    Args:
        values: Tiles in HU, shape (N, T, T).
        inside: Which voxels count, bool, the same shape; at least one in each tile.
        hu_window: Range of the grey levels, HU; voxels beyond it take the first or last level.

    Returns:
        float64, shape (N, F), columns as in ``FEATURES``: HU where the name says no other unit; skewness, kurtosis
        (excess) and co-occurrences without unit, low_attenuation a share. Skewness and kurtosis of a tile of one
        single HU are 0.
    """
    if not len(values):
        return np.zeros((0, len(FEATURES)))
    values = np.where(inside, values, 0).astype(np.float64)
    columns = [*_first_order(values, inside), *_gradient(values, inside), *_bands(values, inside)]
    return np.column_stack([*columns, *_co_occurrences(values, inside, hu_window)])


def _mean(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the mean over the voxels inside, shape (N, 1, 1); 0 where there are none."""
    return (values * inside).sum((1, 2), keepdims=True) / np.maximum(inside.sum((1, 2), keepdims=True), 1)


def _std(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the deviation over the voxels inside, shape (N,)."""
    return np.sqrt(_mean((values - _mean(values, inside)) ** 2, inside)).ravel()


def _first_order(values: np.ndarray, inside: np.ndarray) -> list[np.ndarray]:
    """Return mean, std, skewness, excess kurtosis, two quantiles and the low-attenuation share, each of shape (N,)."""
    mean = _mean(values, inside)
    std = _std(values, inside)
    scaled = (values - mean) / np.maximum(std, 1e-6)[:, None, None]
    skewness, fourth = (_mean(scaled**power, inside).ravel() for power in (3, 4))
    ordered = np.sort(np.where(inside, values, np.inf).reshape(len(values), -1), axis=1)
    last = inside.sum((1, 2)) - 1
    quantiles = [np.take_along_axis(ordered, np.rint(q * last).astype(int)[:, None], 1)[:, 0] for q in (0.05, 0.95)]
    low = _mean(values < LOW_ATTENUATION_HU, inside).ravel()
    return [mean.ravel(), std, skewness, np.where(std > 1e-6, fourth - 3, 0), *quantiles, low]


def _gradient(values: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of the forward difference's magnitude where all three voxels are inside, HU a voxel."""
    both = inside[:, :-1, :-1] & inside[:, 1:, :-1] & inside[:, :-1, 1:]
    here = values[:, :-1, :-1]
    magnitude = np.hypot(values[:, 1:, :-1] - here, values[:, :-1, 1:] - here)
    return _mean(magnitude, both).ravel(), _std(magnitude, both)


def _bands(values: np.ndarray, inside: np.ndarray) -> list[np.ndarray]:
    """Return the deviation of each difference of Gaussians, HU; the first one is between the tile and SIGMAS[0]."""
    centred = (values - _mean(values, inside)) * inside
    previous, bands = centred, []
    for sigma in SIGMAS:
        sum_, weight = (
            ndimage.gaussian_filter(array, (0, sigma, sigma), mode="constant", truncate=3)
            for array in (centred, inside.astype(np.float64))
        )
        smooth = np.where(inside, sum_ / np.maximum(weight, 1e-6), 0)
        bands.append(_std(previous - smooth, inside))
        previous = smooth
    return bands


def _co_occurrences(values: np.ndarray, inside: np.ndarray, hu_window: tuple[float, float]) -> list[np.ndarray]:
    """Return each of PROPERTIES at each of STEPS, shape (N,); outside the region is a level that is dropped."""
    low, high = hu_window
    levels = np.clip((values - low) / (high - low) * LEVELS, 0, LEVELS - 1).astype(np.uint8)
    levels[~inside] = LEVELS
    angles = np.arange(4) * np.pi / 4
    results = []
    for start in range(0, len(levels), 64):  # bounds memory
        counts = [graycomatrix(grey, STEPS, angles, LEVELS + 1, symmetric=True) for grey in levels[start : start + 64]]
        counts = np.concatenate(counts, axis=2)[:-1, :-1]
        results.append([graycoprops(counts, name).mean(-1).reshape(-1, len(STEPS)) for name in PROPERTIES])
    return [step for name in np.concatenate(results, axis=1) for step in name.T]


def standardise(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return features in deviations of a reference set from its mean; a feature constant there is only centred."""
    deviation = reference.std(axis=0)
    return (features - reference.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1)


def frechet_distance(a: np.ndarray, b: np.ndarray, reference: np.ndarray) -> float:
    """Return the squared Frechet distance of two sets of features, each taken as a Gaussian.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) on standardised features, after the Frechet radiomic distance of
    Konz et al. (arXiv 2412.01496). It is biased upwards for small sets: compare only distances of sets as large.

    Args:
        a: Features of one set, shape (N, F).
        b: Features of the other, another N.
        reference: Features that standardise both, shape (M, F).

    Returns:
        0 for equal sets; NaN if ``a`` or ``b`` has fewer than ``FEWEST_TILES`` rows.
    """
    if min(len(a), len(b)) < FEWEST_TILES:
        return float("nan")
    a, b = standardise(a, reference), standardise(b, reference)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    eigenvalues, vectors = np.linalg.eigh(np.atleast_2d(cov_a))
    root_a = vectors * np.sqrt(eigenvalues.clip(0)) @ vectors.T
    # (C_a C_b)^(1/2) and (C_a^(1/2) C_b C_a^(1/2))^(1/2) have one trace, and the latter is symmetric
    trace = np.sqrt(np.linalg.eigvalsh(root_a @ np.atleast_2d(cov_b) @ root_a).clip(0)).sum()
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.atleast_2d(cov_a + cov_b)) - 2 * trace
    return float(max(distance, 0))


def mmd(a: np.ndarray, b: np.ndarray, reference: np.ndarray) -> float:
    """Return the unbiased squared maximum mean discrepancy under KID's kernel (Binkowski et al., ICLR 2018, Eq. 4).

    k(x, y) = (x y / F + 1)^3 on standardised features; arguments as in :func:`frechet_distance`.

    Returns:
        0 in expectation for sets of one distribution, so at times below 0; NaN as in :func:`frechet_distance`.
    """
    if min(len(a), len(b)) < FEWEST_TILES:
        return float("nan")
    a, b = standardise(a, reference), standardise(b, reference)
    within_a, within_b, between = (((x @ y.T) / x.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    means = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (within_a, within_b)]
    return float(sum(means) - 2 * between.mean())


def prdc(real: np.ndarray, fake: np.ndarray, reference: np.ndarray, nearest: int = 5) -> dict[str, float]:
    """Return precision, recall (Kynkaanniemi et al., NeurIPS 2019), density and coverage (Naeem et al., ICML 2020).

    A tile's ball reaches to its ``nearest``-th neighbour in its own set. Precision: fakes in some real ball; recall:
    reals in some fake ball; density: real balls a fake lies in, over ``nearest``; coverage: real balls with a fake.

    Args:
        real: Features of real tiles, shape (N, F).
        fake: Features of painted tiles, another N.
        reference: Features that standardise both, shape (M, F).
        nearest: Number of neighbours.

    Returns:
        The four by name; NaN as in :func:`frechet_distance`, or with no more than ``nearest`` tiles.
    """
    if min(len(real), len(fake)) < max(FEWEST_TILES, nearest + 1):
        return dict.fromkeys(("precision", "recall", "density", "coverage"), float("nan"))
    real, fake = standardise(real, reference), standardise(fake, reference)
    real_radius, fake_radius = (np.partition(cdist(x, x), nearest, axis=1)[:, nearest] for x in (real, fake))
    apart = cdist(real, fake)
    in_real, in_fake = apart <= real_radius[:, None], apart <= fake_radius
    return {
        "precision": float(in_real.any(0).mean()),
        "recall": float(in_fake.any(1).mean()),
        "density": float(in_real.sum(0).mean() / nearest),
        "coverage": float(in_real.any(1).mean()),
    }
