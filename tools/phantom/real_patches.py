"""Real patches of emphysema and normal lung set into a CT, so that a segmenter learns from what is not drawn too."""

import dataclasses
from pathlib import Path

import numpy as np
from scipy import ndimage

from tools.io.files import InputError

NORMAL = "NT"  # the class of normal tissue; every other one is emphysema
DENSE_HU = -600.0  # pleura and chest wall of a patch are not set in
FADE_MM = 2.0  # over which a patch fades into the lung around it: a square's edge would be learned as texture


@dataclasses.dataclass(frozen=True)
class Patches:
    """Real patches of lung.

    Attributes:
        hu: shape (n, side, side), int16.
        emphysema: whether each shows emphysema, shape (n,).
        pixel_mm: size of a pixel.
    """

    hu: np.ndarray
    emphysema: np.ndarray
    pixel_mm: float


def read_patches(path: Path, share: float = 1.0, pixel_mm: float = 0.6, rest: bool = False) -> Patches:
    """Read patches as the Chest Imaging Platform's are stored here.

    Args:
        path: npz file with ``patches``, HU of shape (n, side, side), and ``labels``, the n classes, NT for normal.
        share: Share of each class that is used, from the beginning of the file; neighbours in it resemble each other,
            so the rest can serve as a test.
        pixel_mm: Size of a pixel.
        rest: Whether to read the patches beyond the share instead.

    Raises:
        InputError: if the file holds something else, or ``share`` is out of range.
    """
    if isinstance(share, bool) or not 0 < share <= 1:
        raise InputError(f"the share of the patches must be above 0 and at most 1, not {share}")
    try:
        with np.load(path) as content:
            hu, classes = content["patches"], content["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no npz file with the arrays patches and labels: {error}") from None
    if hu.ndim != 3 or hu.shape[1] != hu.shape[2] or len(hu) != len(classes) or hu.min() > -500:
        raise InputError(f"{path} holds patches of shape {hu.shape} and {len(classes)} labels, not n squares in HU")
    kept = []
    for where in (np.flatnonzero(classes == c) for c in set(classes)):
        count = max(1, round(share * len(where)))
        kept.append(where[count:] if rest else where[:count])
    chosen = np.sort(np.concatenate(kept))
    if not len(chosen):
        raise InputError(f"a share of {share} leaves no patch of {path}; name the share that training used")
    return Patches(hu[chosen], classes[chosen] != NORMAL, pixel_mm)


def set_patches(
    rng: np.random.Generator, hu: np.ndarray, label: np.ndarray, voxel_mm: tuple, patches: Patches,
    labels: dict[str, int], per_slice: int = 5,
) -> int:  # fmt: skip
    """Set patches into healthy lung, in place, where they fit; emphysema and normal ones alike often.

    Args:
        rng: source of all draws.
        hu: CT in HU, float, shape (W, H, slices).
        label: label values of the same shape.
        voxel_mm: size of a voxel.
        patches: what to set in.
        labels: tissue name to value.
        per_slice: most patches in one slice.

    Returns:
        The number of patches set in.
    """
    side = round(patches.hu.shape[1] * patches.pixel_mm / voxel_mm[0])
    steps = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    ramp = np.clip(steps * voxel_mm[0] / FADE_MM, 0, 1)
    share = np.minimum(ramp[:, None], ramp)
    kinds = [np.flatnonzero(patches.emphysema), np.flatnonzero(~patches.emphysema)]
    count = 0
    for k in range(hu.shape[2]):
        free = ndimage.minimum_filter((label[..., k] == labels["healthy"]).view(np.uint8), side + 2)
        for _ in range(per_slice):
            places = np.flatnonzero(free)
            if not len(places):
                break
            x, y = np.unravel_index(rng.choice(places), free.shape)
            kind = kinds[int(rng.integers(2))]
            number = int(rng.choice(kind if len(kind) else kinds[0]))
            square = resized(np.rot90(patches.hu[number], int(rng.integers(4))), side)
            square = square.T if rng.random() < 0.5 else square
            place = (slice(x - side // 2, x - side // 2 + side), slice(y - side // 2, y - side // 2 + side), k)
            lung = ndimage.gaussian_filter(square, 1.0) < DENSE_HU
            hu[place] += np.where(lung, share * (square - hu[place]), 0)
            label[place][lung & (share > 0.5)] = labels["emphysema" if patches.emphysema[number] else "healthy"]
            free[max(0, x - side) : x + side + 1, max(0, y - side) : y + side + 1] = 0
            count += 1
    return count


def resized(square: np.ndarray, side: int) -> np.ndarray:
    """Return a square of ``side`` pixels; what shrinks is averaged first."""
    factor = side / square.shape[0]
    square = square.astype(np.float32)
    if factor < 1:
        square = ndimage.gaussian_filter(square, 0.4 * (1 / factor - 1))
    positions = (np.arange(side) + 0.5) / factor - 0.5
    grid = np.meshgrid(positions, positions, indexing="ij")
    return ndimage.map_coordinates(square, grid, order=1, mode="nearest")
