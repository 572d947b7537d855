"""What lies round a patient in a whole CT: air, the table, a mattress, blankets and cushions."""

import dataclasses

import numpy as np
from scipy import ndimage

FIELD_MM = (360.0, 520.0)  # side of the square field of view
BODY_HU = -350.0
AIR_HU = -1000.0
NOT_SEEN_HU = -1024.0  # outside the scanner's round field


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What was drawn round a patient, for its provenance.

    Attributes:
        field_mm: side of the square field of view.
        table: whether a table was drawn.
        blankets: number of blankets.
        cushions: number of cushions.
        round_field: whether the corners hold no measurement.
    """

    field_mm: float
    table: bool
    blankets: int
    cushions: int
    round_field: bool


def draw_surroundings(
    rng: np.random.Generator, hu: np.ndarray, voxel_mm: tuple[float, float, float]
) -> tuple[np.ndarray, tuple[tuple[int, int], tuple[int, int]], Surroundings]:
    """Widen a CT that was cut to the body to a field of view with air, table and blankets.

    Args:
        rng: source of all draws.
        hu: CT in HU, shape (W, H, slices), axes towards left, back and head.
        voxel_mm: size of a voxel.

    Returns:
        HU of shape (W', H', slices); how many voxels were added before and after along the first two axes; and what
        was drawn. Voxels of the CT itself change only outside the body.
    """
    field_mm = float(rng.uniform(*FIELD_MM))
    pads = []
    for axis in (0, 1):
        extra = max(0, round(field_mm / voxel_mm[axis]) - hu.shape[axis])
        before = round(extra * rng.uniform(0.3, 0.7))
        pads.append((before, extra - before))
    wide = np.pad(hu, (*pads, (0, 0)), constant_values=AIR_HU).astype(np.float32)
    body = np.stack([_body(wide[..., k]) for k in range(wide.shape[2])], axis=2)
    held = np.argwhere(body.any(2))
    if not len(held):
        return wide, tuple(pads), Surroundings(field_mm, False, 0, 0, False)
    x_mm = ((np.arange(wide.shape[0]) - held[:, 0].mean()) * voxel_mm[0])[:, None]
    y_mm = ((np.arange(wide.shape[1]) - np.percentile(held[:, 1], 99.5)) * voxel_mm[1])[None, :]
    things = np.zeros(wide.shape[:2], np.float32)  # HU above air, the same in all slices
    table = bool(rng.random() < 0.8)
    if table:
        things = np.maximum(things, _table(rng, x_mm, y_mm))
    outside_mm = ndimage.distance_transform_edt(~body.any(2), sampling=voxel_mm[:2]).astype(np.float32)
    blankets, cushions = (int(rng.integers(0, most + 1)) for most in (4, 2))
    for _ in range(blankets):
        things = np.maximum(things, _blanket(rng, outside_mm, voxel_mm))
    for _ in range(cushions):
        things = np.maximum(things, _cushion(rng, x_mm, y_mm))
    things = ndimage.gaussian_filter(things, 0.4 / np.asarray(voxel_mm[:2]))
    grain = ndimage.gaussian_filter(rng.standard_normal(wide.shape, dtype=np.float32), (0.6, 0.6, 0))
    around = np.maximum(wide, AIR_HU + things[..., None]) + rng.uniform(3, 30) * grain / grain.std()
    added = np.ones(wide.shape[:2], bool)
    added[pads[0][0] : pads[0][0] + hu.shape[0], pads[1][0] : pads[1][0] + hu.shape[1]] = False
    wide = np.where(body | ~((things[..., None] > 20) | added[..., None]), wide, around)
    round_field = bool(rng.random() < 0.5)
    if round_field:
        middle = (np.asarray(wide.shape[:2]) - 1) / 2
        radius = np.hypot((np.arange(wide.shape[0]) - middle[0])[:, None], np.arange(wide.shape[1]) - middle[1])
        beyond = (radius > max(middle) + 1)[..., None] & ~body
        wide = np.where(beyond, NOT_SEEN_HU, wide)
    return wide, tuple(pads), Surroundings(field_mm, table, blankets, cushions, round_field)


def _body(hu: np.ndarray) -> np.ndarray:
    """Return the largest piece of a slice that is denser than fat's border, its holes filled."""
    pieces, count = ndimage.label(ndimage.binary_opening(hu > BODY_HU, iterations=2))
    if count == 0:
        return np.zeros(hu.shape, bool)
    largest = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    return ndimage.binary_fill_holes(ndimage.binary_dilation(largest, iterations=3))


def _table(rng: np.random.Generator, x_mm: np.ndarray, y_mm: np.ndarray) -> np.ndarray:
    """Return a table whose sides rise: two shells, foam between them, sometimes a mattress above; HU above air."""
    across = (x_mm - rng.uniform(-30, 30)) / 200
    below = y_mm - rng.uniform(0, 30) + rng.uniform(0, 90) * across**2
    thick, depth = rng.uniform(0.8, 3.5), rng.uniform(15, 70)
    under = below - depth + rng.uniform(-60, 20) * across**2
    shell = rng.uniform(250, 1000)
    table = np.where((below > 0) & (under < 0), rng.uniform(0, 90), 0.0)
    for distance in (below, under):
        table = np.maximum(table, shell * (np.abs(distance) < thick))
    if rng.random() < 0.4:
        table = np.maximum(table, np.where((below < 0) & (below > -rng.uniform(8, 40)), rng.uniform(10, 120), 0))
    return (table * (np.abs(across) < rng.uniform(0.9, 1.4))).astype(np.float32)


def _blanket(rng: np.random.Generator, outside_mm: np.ndarray, voxel_mm: tuple) -> np.ndarray:
    """Return a wavy sheet round part of the body; HU above air."""
    waves = [_smooth(rng, outside_mm.shape, sigma, voxel_mm) for sigma in (35.0, 12.0, 40.0)]
    away = outside_mm - rng.uniform(2, 35) - rng.uniform(0, 25) * waves[0] - rng.uniform(0, 6) * waves[1]
    sheet = np.abs(away) < rng.uniform(0.5, 2.5)
    stuffed = (np.abs(away) < rng.uniform(3, 15)) * rng.uniform(0, 200)
    lies = (waves[2] > rng.uniform(-1.5, 0.5)) & (outside_mm > 0)
    return (np.maximum(sheet * rng.uniform(100, 700), stuffed) * lies).astype(np.float32)


def _cushion(rng: np.random.Generator, x_mm: np.ndarray, y_mm: np.ndarray) -> np.ndarray:
    """Return an ellipse of foam with a cover, beside or below the body; HU above air."""
    turn, side = rng.uniform(0, np.pi), rng.choice([-1, 1])
    x, y = x_mm - side * rng.uniform(120, 260), y_mm + rng.uniform(-60, 200)
    long, short = rng.uniform(30, 110), rng.uniform(10, 50)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    radius = np.hypot(along / long, across / short)
    cover = rng.uniform(100, 600) * (np.abs(radius - 1) < rng.uniform(1, 3) / short)
    return np.maximum((radius < 1) * rng.uniform(10, 180), cover).astype(np.float32)


def _smooth(rng: np.random.Generator, shape: tuple[int, int], sigma_mm: float, voxel_mm: tuple) -> np.ndarray:
    """Return smooth noise of unit deviation, drawn on a coarse grid."""
    step = [max(1, int(sigma_mm / 3 / size)) for size in voxel_mm[:2]]
    coarse = rng.standard_normal([length // by + 4 for length, by in zip(shape, step)], dtype=np.float32)
    sigma = [sigma_mm / size / by for size, by in zip(voxel_mm, step)]
    noise = ndimage.gaussian_filter(coarse, sigma)
    noise = ndimage.zoom(noise, step, order=1)[: shape[0], : shape[1]]
    return noise / noise.std()
