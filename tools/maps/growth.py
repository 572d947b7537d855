"""A seeded model of one tissue's lesions: their size, shape and place are drawn, then a lesion is grown in a lung.

The model knows nothing of any tissue; that fibrosis hugs the pleura and emphysema fills round holes at the top is in
the training lesions' statistics. Everything works in voxels of canonical (RAS) orientation.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from tools.maps.lesions import MIN_LESION_VOXELS, Lesion
from tools.maps.placement import Receiver
from tools.maps.shape import ELLIPSOID, measures

TRIES = 12  # shapes looked at per lesion; the one most like the drawn measures is kept
PLACES = (2000, 40)  # healthy voxels looked at per lesion, and those like the drawn place among them
LIKE_VOLUME = 8  # lesions drawn where one of a given volume is wanted
TRY_VOXELS = 20000  # a try is made on a grid of at most about so many voxels
REACH = 3.2  # half the size of the box a lesion may fill, in its standard deviations
WIDER = (1.7, 3.0)  # where a lesion of given measures fills its box to the sides, the box is made so much wider
LEAST_SPREAD = 0.05  # of a measure in the model's space, where the training lesions (or the only one) agree
LIKENESS = ("depth_mm", "depth_spread_mm", "height", "elongation", "flatness", "fullness")


@dataclass
class Box:
    """A part of a receiver in which a lesion grows, on its own or a coarser grid."""

    places: tuple[np.ndarray, ...]  # voxel indices in the receiver along each axis
    free: np.ndarray  # where a lesion may grow, shape (w, h, d)
    depth_mm: np.ndarray  # distance to the pleura, the same shape
    height: np.ndarray  # of each slice in the lung
    spacing: np.ndarray  # voxel size of the grid in mm
    centre: tuple[int, ...]  # index of the centre in the grid


@dataclass
class Shape:
    """What a lesion grows to, besides its centre."""

    spread: np.ndarray  # standard deviations in mm along the long and the short axis in the plane and across slices
    angle: float  # of the long axis in radians
    depth_mm: float  # distance to the pleura it keeps to
    depth_spread_mm: float  # how closely it does
    roughness: float  # how much the noise weighs beside the distance from the centre
    noise: np.ndarray  # one number per knot, shape (n, n, m)
    knot_mm: float  # distance of the knots


class LesionModel:
    """Draws lesions of one tissue after those of the training patients, of which there must be one.

    The joint distribution of the measures is a smoothed bootstrap: those of a random lesion, plus Gaussian noise with
    the lesions' own covariance, shrunk by Silverman's factor (Silverman 1986, section 6.4) so that the variance stays.
    """

    def __init__(self, lesions: list[Lesion]) -> None:
        self._learn([lesion.measures for lesion in lesions])

    @classmethod
    def from_measures(cls, rows: list[dict[str, float]]) -> "LesionModel":
        """Return the model of lesions of which only the measures are known.

        Args:
            rows: Of one tissue, each as ``shape.measures`` returns them, at least one.
        """
        model = cls.__new__(cls)
        model._learn(rows)
        return model

    def _learn(self, rows: list[dict[str, float]]) -> None:
        self.names = list(rows[0])
        self.points = np.array([[_to_model(name, row[name]) for name in self.names] for row in rows])
        count, size = self.points.shape
        spread = np.maximum(self.points.std(axis=0), LEAST_SPREAD)
        self.spread = dict(zip(self.names, spread))
        self.bandwidth = min(0.5, (4 / (count * (size + 2))) ** (1 / (size + 4)))
        covariance = np.cov(self.points.T, bias=True) if count > size else np.zeros((size, size))
        self.covariance = covariance + np.diag(spread**2 - np.diag(covariance))
        self.limits = self.points.min(axis=0) - spread, self.points.max(axis=0) + spread

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """Return the measures (``lesion_shape.measures``) of one new lesion."""
        mean = self.points.mean(axis=0)
        point = self.points[rng.integers(len(self.points))]
        noise = rng.multivariate_normal(np.zeros(len(point)), self.covariance, method="eigh")
        drawn = mean + (point - mean + self.bandwidth * noise) / np.sqrt(1 + self.bandwidth**2)
        drawn = np.clip(drawn, *self.limits)
        return {name: _from_model(name, value) for name, value in zip(self.names, drawn)}

    def draw_of_volume(self, volume_ml: float, rng: np.random.Generator) -> dict[str, float]:
        """Return the measures of one new lesion of a given volume: of several drawn, those of the nearest volume."""
        drawn = [self.draw(rng) for _ in range(LIKE_VOLUME)]
        nearest = min(drawn, key=lambda measured: abs(math.log(measured["volume_ml"] / volume_ml)))
        return nearest | {"volume_ml": volume_ml}

    def grow(
        self, receiver: Receiver, value: int, rng: np.random.Generator, wanted: dict[str, float] | None = None
    ) -> int:
        """Grow one lesion in a receiver's healthy lung and enter it with a label value into the receiver's map.

        Its measures are drawn unless they are given. Returns the voxels painted, 0 if no place was found.
        """
        given, wanted = wanted is not None, wanted or self.draw(rng)
        voxels = round(1000 * wanted["volume_ml"] / float(np.prod(receiver.spacing)))
        voxels = max(voxels, MIN_LESION_VOXELS)
        likely = receiver.likely_places(wanted["height"], wanted["depth_mm"], rng, *PLACES)
        if voxels > receiver.room or not len(likely):
            return 0
        best, least = None, np.inf
        for _ in range(TRIES):
            centre, shape = likely[rng.integers(len(likely))], self.draw_shape(wanted, receiver.spacing, rng)
            box = cut_box(receiver, value, centre, shape.spread, TRY_VOXELS)
            coarser = float(np.prod(receiver.spacing) / np.prod(box.spacing))
            mask = fill(box, shape, max(1, round(voxels * coarser)))
            if mask is None:
                continue
            unlike = self.unlike(wanted, box, mask)
            if unlike < least:
                best, least = (centre, shape), unlike
        if best is None:
            return 0
        box = cut_box(receiver, value, best[0], best[1].spread, None)
        mask = fill(box, best[1], voxels)
        for wider in WIDER if given else ():  # in a thin lung the box's sides would be the lesion's border
            if mask is None or not _reaches_sides(mask):
                break
            box = cut_box(receiver, value, best[0], wider * best[1].spread, None)
            mask = fill(box, best[1], voxels)
        if mask is None or np.count_nonzero(mask) < MIN_LESION_VOXELS:
            return 0
        inside = tuple(slice(places[0], places[-1] + 1) for places in box.places)
        receiver.enter(inside, mask, value)
        return int(np.count_nonzero(mask))

    def draw_shape(self, wanted: dict[str, float], spacing: np.ndarray, rng: np.random.Generator) -> Shape:
        """Return a shape that may come out with the measures wanted, in a CT of the given voxel size in mm."""
        product = 1000 * wanted["volume_ml"] / (ELLIPSOID * wanted["fullness"])  # of the three spreads
        across = max(np.cbrt(product * wanted["flatness"] ** 2), spacing[2] / np.sqrt(12))
        plane = max(product / across, spacing[0] * spacing[1] / 3)
        elongation = wanted["elongation"] ** rng.uniform(0.9, 1.5)
        spread = np.array([np.sqrt(plane * elongation), np.sqrt(plane / elongation), across])
        knot_mm = max(spread[1] * rng.uniform(0.6, 1.6), spread.max() / 8)
        knots = (2 * REACH * spread[[0, 0, 2]] / knot_mm).astype(int) + 3
        return Shape(
            spread,
            rng.uniform(0, np.pi),
            wanted["depth_mm"] * rng.uniform(0.5, 1.2),
            max(wanted["depth_spread_mm"], spacing[0] / 2) * rng.uniform(0.5, 2.0),
            rng.uniform(0, 2.0) * max(0.2, 1.5 - wanted["fullness"]),
            rng.normal(size=knots),
            knot_mm,
        )

    def unlike(self, wanted: dict[str, float], box: Box, mask: np.ndarray) -> float:
        """Return how far a grown lesion's measures lie from those wanted, in the training lesions' deviations."""
        grown = measures(mask, box.depth_mm, box.height, box.spacing)
        steps = [(_to_model(n, grown[n]) - _to_model(n, wanted[n])) / self.spread[n] for n in LIKENESS]
        return float(np.square(steps).sum())


def _to_model(name: str, value: float) -> float:
    return value if name == "height" else math.log(value + 1e-3)


def _from_model(name: str, value: float) -> float:
    return float(min(max(value, 0.0), 1.0)) if name == "height" else max(math.exp(value) - 1e-3, 1e-3)


def cut_box(receiver: Receiver, value: int, centre: np.ndarray, spread: np.ndarray, at_most: int | None) -> Box:
    """Return the part of a receiver around a voxel, which the grid holds, in which a lesion of a spread (mm) may grow.

    It stays apart from others of the same label value. Of more than about ``at_most`` voxels a coarser grid is made;
    None keeps the receiver's own.
    """
    half = np.ceil(REACH * spread[[0, 0, 2]] / receiver.spacing).astype(int)
    stride = np.ones(3, int)
    while at_most and np.prod(np.minimum(2 * half + 1, receiver.target.shape) / stride) > at_most:
        stride[np.argmin(np.where(half > 4 * stride, receiver.spacing * stride, np.inf))] += 1
    places = []
    for axis, size in enumerate(receiver.target.shape):
        below = min(half[axis], centre[axis]) // stride[axis]
        above = min(half[axis], size - 1 - centre[axis]) // stride[axis]
        places.append(centre[axis] + stride[axis] * np.arange(-below, above + 1))
    grid = np.ix_(*places)
    inside = tuple(np.searchsorted(places[axis], centre[axis]) for axis in range(3))
    target = receiver.target[grid]
    free = (target == receiver.healthy) & ~ndimage.binary_dilation(target == value)
    return Box(
        tuple(places), free, receiver.depth_mm[grid], receiver.height[places[2]], receiver.spacing * stride, inside
    )


def cost(box: Box, shape: Shape) -> np.ndarray:
    """Return how late each voxel of a box joins a lesion: its distance from the centre in the shape's own metric.

    Distance and distance to the pleura count in the shape's standard deviations; smooth noise makes the border uneven.
    The numbers, shape (w, h, d), begin at about 0; an ellipsoid's border lies at sqrt(5).
    """
    x, y, z = ((np.arange(n) - c) * s for n, c, s in zip(box.free.shape, box.centre, box.spacing))
    along, sideways = np.cos(shape.angle), np.sin(shape.angle)
    plane = (x[:, None] * along + y * sideways) ** 2 / shape.spread[0] ** 2
    plane = plane + (y * along - x[:, None] * sideways) ** 2 / shape.spread[1] ** 2
    depth = (box.depth_mm - shape.depth_mm) / shape.depth_spread_mm
    distance = np.sqrt(plane[..., None] + z**2 / shape.spread[2] ** 2 + 0.5 * depth**2)
    middle = (np.array(shape.noise.shape) - 1) / 2
    knots = np.meshgrid(*(axis / shape.knot_mm + m for axis, m in zip((x, y, z), middle)), indexing="ij")
    noise = ndimage.map_coordinates(shape.noise, knots, order=1, mode="nearest", output=np.float32)
    return distance + shape.roughness * noise


def fill(box: Box, shape: Shape, voxels: int) -> np.ndarray | None:
    """Return the mask of the connected lesion of exactly so many free voxels that holds the centre and costs least.

    It has the box's shape; None if the centre's surroundings have too little room.
    """
    late = np.where(box.free, cost(box, shape), np.inf)
    late[box.centre] = -np.inf
    order = np.sort(late[box.free])
    part, last = np.zeros_like(box.free), 0
    while (size := np.count_nonzero(part)) < voxels:
        if last == len(order):
            return None
        last = min(last + max(voxels - size, voxels // 50), len(order))  # what else costs as little may lie apart
        part = _part(late <= order[last - 1], box.centre)
    dearest = np.partition(late[part], voxels - 1)[voxels - 1]
    return _part(part & (late <= dearest), box.centre)


def _reaches_sides(mask: np.ndarray) -> bool:
    """Return whether a lesion lies on the sides of its box within the axial plane."""
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def _part(mask: np.ndarray, centre: tuple[int, ...]) -> np.ndarray:
    parts, _ = ndimage.label(mask)
    return parts == parts[centre]
