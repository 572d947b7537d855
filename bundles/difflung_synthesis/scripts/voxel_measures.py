"""What one case adds to the measures that compare painted and real tissue voxel by voxel.

Legend of shapes: S samples of one case, painted with different seeds; W, H and D voxels. All values are HU.
"""

from itertools import combinations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from skimage.metrics import structural_similarity

SSIM_EDGE = 7  # of the window over which structural_similarity averages, voxels
MARGIN = 8  # around what was painted: more than any measure looks beyond it, in-plane voxels


def painted_box(tissue: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the box that holds every painted voxel and ``MARGIN`` around them in-plane.

    Args:
        tissue: Tissue of each painted voxel, 0 where nothing was painted, shape (W, H, D); not all 0.
    """
    box = []
    for axis, margin in enumerate((MARGIN, MARGIN, 0)):
        occupied = np.flatnonzero(tissue.any(axis=tuple({0, 1, 2} - {axis})))
        box.append(slice(max(int(occupied[0]) - margin, 0), int(occupied[-1]) + 1 + margin))
    return tuple(box)


def hu_counts(hu: np.ndarray, hu_window: tuple[int, int]) -> np.ndarray:
    """Return how many values fall into each bin of 1 HU, shape (bins,); values beyond the window in the outer bins."""
    low, high = hu_window
    return np.bincount(np.floor(hu - low).clip(0, high - low - 1).astype(np.int64).ravel(), minlength=high - low)


def quantiles(counts: np.ndarray, shares: tuple[float, ...], hu_window: tuple[int, int]) -> list[float]:
    """Return quantiles of the values that :func:`hu_counts` counted (at least one), to 1 HU."""
    first = np.searchsorted(np.cumsum(counts), np.asarray(shares) * counts.sum())
    return [float(hu_window[0] + index) for index in first]


def ssim_maps(painted: np.ndarray, real: np.ndarray, tissue: np.ndarray, hu_range: float) -> np.ndarray:
    """Return the structural similarity (Wang et al., 2004) around each voxel, axial slice by axial slice.

    Args:
        painted: Painted samples, shape (S, W, H, D).
        real: Real CT, shape (W, H, D).
        tissue: Tissue of each painted voxel, 0 where nothing was painted, shape (W, H, D); slices without tissue are
            left out.
        hu_range: Width of the HU window.

    Returns:
        float32, shape (S, W, H, D); NaN where left out, and all over where a slice is smaller than ``SSIM_EDGE``.
    """
    maps = np.full(painted.shape, np.nan, np.float32)
    if min(real.shape[:2]) < SSIM_EDGE:
        return maps
    for z in np.flatnonzero(tissue.any((0, 1))):
        for sample, map_ in zip(painted, maps):
            map_[..., z] = structural_similarity(
                real[..., z], sample[..., z], win_size=SSIM_EDGE, data_range=hu_range, full=True
            )[1]
    return maps


def voxel_sums(
    painted: np.ndarray, real: np.ndarray, where: np.ndarray, similarity: np.ndarray, windows: np.ndarray | None = None
) -> dict[str, float]:
    """Return the sums from which :func:`voxel_measures` makes its ratios; those of several cases are to be added.

    Args:
        painted: Painted samples, shape (S, W, H, D).
        real: Real CT, shape (W, H, D).
        where: Region of one tissue, bool, shape (W, H, D).
        similarity: Similarity, as :func:`ssim_maps` gives it.
        windows: Number of windows by which each voxel was painted, shape (W, H, D); None if that is not known.
    """
    values, truth = painted[:, where].astype(np.float64), real[where].astype(np.float64)
    pairs = list(combinations(values, 2))
    sums = {
        "voxels": values.size,
        "squared": ((values - truth) ** 2).sum(),
        "absolute": np.abs(values - truth).sum(),
        "ssim": similarity[:, where].sum(dtype=np.float64),
        "pairs": len(pairs) * truth.size,
        "spread": sum(np.abs(first - second).sum() for first, second in pairs),
    }
    for name, volumes in (("painted", painted), ("real", real[None])):
        sums[f"{name}_border"] = _step_sum(volumes, where) / len(volumes)
        sums[f"{name}_seam"], sums[f"{name}_inside"] = (
            (0, 0) if windows is None else _seam_sums(volumes, where, windows) / len(volumes)
        )
        sums[f"{name}_covariance"], sums[f"{name}_below"], sums[f"{name}_above"] = _slice_sums(volumes, where)
    return {name: float(value) for name, value in sums.items()}


def _step_sum(volumes: np.ndarray, parts: np.ndarray, among: np.ndarray | None = None) -> float:
    """Return the sum of |HU difference| over the in-plane neighbours that differ in ``parts``, shape (W, H, D).

    Args:
        volumes: Volumes, shape (S, W, H, D).
        parts: Booleans or numbers, shape (W, H, D).
        among: Where both neighbours must lie, bool, shape (W, H, D); anywhere if None.
    """
    total = 0.0
    for axis in (0, 1):
        steps = np.diff(parts, axis=axis) != 0
        if among is not None:
            steps &= sliding_window_view(among, 2, axis).all(axis=-1)
        total += np.abs(np.diff(volumes, axis=axis + 1))[:, steps].sum(dtype=np.float64)
    return total


def _seam_sums(volumes: np.ndarray, where: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the sums of |HU difference| in the region over neighbours with a window's edge between them, and all."""
    columns = np.indices(where.shape[:2]).sum(axis=0) % 2  # differs between any two neighbours
    everywhere = np.broadcast_to(columns[..., None], where.shape)
    return np.array([_step_sum(volumes, parts, where) for parts in (windows, everywhere)])


def _slice_sums(volumes: np.ndarray, where: np.ndarray) -> tuple[float, float, float]:
    """Return the sums of ab, aa and bb over voxels a and b above it that both lie in the region, less its mean."""
    both = where[..., :-1] & where[..., 1:]
    means = volumes[:, where].mean(axis=1, dtype=np.float64)[:, None]
    a, b = volumes[..., :-1][:, both] - means, volumes[..., 1:][:, both] - means
    return (a * b).sum(), (a * a).sum(), (b * b).sum()


def voxel_measures(sums: dict[str, float], hu_range: float) -> dict[str, float]:
    """Return the measures of one tissue.

    - ``diversity``: how far samples of one map lie apart, over how far they lie from the truth, in mean |HU|; 1 where
      they differ as real tissue would, 0 where they are all the same; NaN with a single sample.
    - ``border_gradient``: step across the region's border, painted over real, at the very same pairs of voxels; above
      1 is a visible seam, below 1 a smear.
    - ``seam_gradient``: step between neighbours in the region that have the edge of a window between them, painted over
      real, over the same ratio for all neighbours; above 1 the windows show. NaN where they are not known.
    - ``slice_correlation``, painted and real: Pearson correlation of a voxel and the one in the next slice, each less
      its tissue's mean in its case.
    - ``psnr_paper`` (dB) and ``ssim_paper`` against the very voxels that were painted over: to set beside published
      figures only, for they punish texture that is right but elsewhere.

    Args:
        sums: Sums of what :func:`voxel_sums` gave.
        hu_range: Width of the HU window.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide
        measures = {
            "diversity": ratio(ratio(sums["spread"], sums["pairs"]), ratio(sums["absolute"], sums["voxels"])),
            "border_gradient": ratio(sums["painted_border"], sums["real_border"]),
            "seam_gradient": ratio(
                ratio(sums["painted_seam"], sums["real_seam"]), ratio(sums["painted_inside"], sums["real_inside"])
            ),
            "psnr_paper": 10 * np.log10(ratio(hu_range**2 * sums["voxels"], sums["squared"])),
            "ssim_paper": ratio(sums["ssim"], sums["voxels"]),
        }
        for name in ("painted", "real"):
            norm = np.sqrt(sums[f"{name}_below"] * sums[f"{name}_above"])
            measures[f"slice_correlation_{name}"] = ratio(sums[f"{name}_covariance"], norm)
    return {name: float(value) for name, value in measures.items()}
