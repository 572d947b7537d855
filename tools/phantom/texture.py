"""What diseased lung looks like: densities and textures that differ between patients and between lesions."""

import dataclasses

import numpy as np
from scipy.spatial import cKDTree

from tools.phantom import anatomy
from tools.phantom.parenchyma import BROAD_MM, GRAIN_MM, LOBULE_MM, PATCH_MM

CELL_DRAWS = 2  # sizes of cysts and of holes that one patient has; each lesion takes one of them


@dataclasses.dataclass(frozen=True)
class Field:
    """The n diseased or healthy voxels of one CT's lungs, with unit noise at each.

    Attributes:
        points: x (left), y (back) and z (head) in mm, shape (n, 3), inside anatomy.BOX_MM.
        depth_mm: distance to the pleura, shape (n,).
        noise: unit noise by name, each (n,): broad0 to broad3, patch0 to patch3, lobule0 to lobule2, grain0 and grain1.
        pixel_mm: in-plane voxel size.
    """

    points: np.ndarray
    depth_mm: np.ndarray
    noise: dict[str, np.ndarray]
    pixel_mm: float

    def at(self, where: np.ndarray) -> "Field":
        """Return the field at some of its voxels, given as indices."""
        noise = {name: values[where] for name, values in self.noise.items()}
        return Field(self.points[where], self.depth_mm[where], noise, self.pixel_mm)


def draw_noise(rng: np.random.Generator, axes: tuple, lung: np.ndarray) -> dict[str, np.ndarray]:
    """Return the noise of Field; how coarse each kind is, is drawn anew for each patient.

    Args:
        rng: source of widths and noise.
        axes: positions (mm) of the voxels along x, y and z.
        lung: bool, shape (W, H, slices).
    """
    kinds = {"broad": (BROAD_MM, 4), "patch": (PATCH_MM, 4), "lobule": (LOBULE_MM, 3), "grain": (GRAIN_MM, 2)}
    noise = {}
    for kind, (width_mm, count) in kinds.items():
        for number in range(count):
            sigma_mm = width_mm * float(np.exp(rng.normal(0, 0.3)))
            noise[f"{kind}{number}"] = anatomy.smooth_noise(rng, axes, sigma_mm)[lung]
    return noise


def ground_glass(rng: np.random.Generator, field: Field, margin: np.ndarray, healthy: np.ndarray) -> np.ndarray:
    """Return the HU of one ground-glass lesion: haze, flat or patchy, in some with fine lines (crazy paving).

    Args:
        rng: source of the lesion's parameters.
        field: voxels of the lesion.
        margin: how far inside the lesion each voxel lies, 0 at its border, shape (n,).
        healthy: HU of the healthy lung there.

    Returns:
        HU, shape (n,).
    """
    noise = field.noise
    level = healthy + rng.uniform(90, 430)
    haze = level + rng.uniform(10, 80) * noise["patch1"] + rng.uniform(5, 110) * noise["lobule1"]
    haze += rng.uniform(5, 80) * noise["grain0"]
    if rng.random() < 0.6:
        haze += rng.uniform(60, 330) * _lines(rng, field)
    edge = rng.choice([0.0, 0.4, 1.0])  # sharp, soft, or fading away over a wide border
    haze = np.clip(haze, healthy + 60, -150)
    return haze if edge == 0 else healthy + (haze - healthy) * np.clip(0.4 + margin / edge, 0.4, 1.0)


def consolidation(rng: np.random.Generator, field: Field, margin: np.ndarray, healthy: np.ndarray) -> np.ndarray:
    """Return the HU of one consolidation, from half-filled and patchy to as dense as muscle; arguments as above."""
    noise = field.noise
    dense = rng.uniform(-30, 60) if rng.random() < 0.35 else rng.uniform(-440, -30)
    solid = dense + rng.uniform(8, 30) * noise["lobule0"] + rng.uniform(5, 20) * noise["grain0"]
    if rng.random() < 0.5:  # lobules that still hold air
        solid -= rng.uniform(80, 350) * np.clip(noise["lobule1"] + 0.6 * noise["patch1"] - rng.uniform(0.3, 1.2), 0, 1)
    edge = rng.choice([0.0, 0.3, 0.8, 1.5])
    if edge == 0:
        return solid
    halo = np.maximum(healthy, rng.uniform(-560, -300))
    return halo + (solid - halo) * np.clip(0.45 + margin / edge, 0.45, 1.0)


def fibrosis(rng: np.random.Generator, field: Field, margin: np.ndarray, cell_mm: float) -> np.ndarray:
    """Return the HU of one fibrotic lesion: lines, honeycombs below the pleura, in some with ground glass between.

    Args:
        rng: source of the lesion's parameters.
        field: voxels of the lesion.
        margin: as above.
        cell_mm: distance between the centres of its cysts.
    """
    noise = field.noise
    between = rng.uniform(-850, -680) + rng.uniform(15, 60) * noise["patch0"] + rng.uniform(10, 35) * noise["lobule0"]
    hu = between + rng.uniform(220, 480) * _lines(rng, field)
    if rng.random() < 0.9:  # cysts are what tells it from ground glass with lines
        distance, cell = _cells(rng, field.points, cell_mm)
        half_mm = max(rng.uniform(0.5, 1.3), 0.45 * field.pixel_mm)
        wall = np.exp(-(((distance[:, 1] - distance[:, 0]) / (2 * half_mm)) ** 2))
        luck = _luck(cell)
        inner = np.where(luck < rng.uniform(0.7, 1.0), rng.uniform(-965, -880) + 60 * luck, rng.uniform(-700, -450))
        honeycomb = inner * (1 - wall) + rng.uniform(-450, -180) * wall
        share = np.clip(1.6 * noise["patch2"] + rng.uniform(-0.2, 2.0) - field.depth_mm / rng.uniform(5, 14), 0, 1)
        hu = hu * (1 - share) + honeycomb * share
    return hu


def emphysema(
    rng: np.random.Generator, field: Field, margin: np.ndarray, healthy: np.ndarray, cell_mm: float
) -> np.ndarray:
    """Return the HU of one emphysematous region: scattered holes, wider inside, or one that has flowed together.

    Args:
        rng: source of the region's parameters.
        field: voxels of the region.
        margin: as above.
        healthy: as above.
        cell_mm: distance between the centres of holes.
    """
    distance, cell = _cells(rng, field.points, cell_mm)
    spread = cell_mm * (rng.uniform(0.22, 0.38) + rng.uniform(0.15, 0.45) * _luck(cell) ** 2)
    spread += cell_mm * rng.uniform(0.0, 0.3) * np.clip(margin, 0, 1.5)
    if rng.random() < 0.25:
        spread += 0.5 * cell_mm  # panlobular
    inside = spread - distance[:, 0] + rng.uniform(0.3, 1.0) * field.noise["grain0"]
    hole = np.clip(inside / max(rng.uniform(0.6, 1.6), 0.5 * field.pixel_mm) + 0.5, 0, 1)
    air = np.minimum(healthy - 35, rng.uniform(-995, -950)) + 6 * field.noise["lobule1"]
    between = healthy + rng.uniform(-45, 15)
    return between * (1 - hole) + air * hole


def draw_lesions(
    rng: np.random.Generator,
    field: Field,
    values: np.ndarray,
    margins: dict[str, np.ndarray],
    lesions: np.ndarray,
    labels: dict[str, int],
    healthy: np.ndarray,
) -> np.ndarray:
    """Return the HU of the lung's tissue with every lesion drawn, before vessels, noise and scanner.

    Args:
        rng: source of all parameters.
        field: voxels of the lungs.
        values: label values, shape (n,).
        margins: per tissue how far inside it each voxel lies, shape (n,).
        lesions: number of the lesion that each voxel belongs to, 0 where it is healthy, shape (n,).
        labels: tissue name to value.
        healthy: HU of the healthy lung, shape (n,).

    Returns:
        HU, shape (n,), ``healthy`` where nothing is drawn.
    """
    hu = healthy.astype(np.float32).copy()
    cysts = 5.6 * np.exp(rng.normal(0, 0.35, CELL_DRAWS))
    holes = 7.0 * np.exp(rng.normal(0, 0.4, CELL_DRAWS))
    order = np.argsort(lesions, kind="stable")
    bounds = np.searchsorted(lesions[order], np.arange(1, lesions.max(initial=0) + 2))
    names = {value: name for name, value in labels.items()}
    for first, end in zip(bounds[:-1], bounds[1:]):
        where = order[first:end]
        if not len(where):
            continue
        name = names[int(values[where[0]])]
        part, margin, below = field.at(where), margins[name][where], healthy[where]
        if name == "ground_glass":
            hu[where] = ground_glass(rng, part, margin, below)
        elif name == "consolidation":
            hu[where] = consolidation(rng, part, margin, below)
        elif name == "fibrosis":
            hu[where] = fibrosis(rng, part, margin, float(rng.choice(cysts)))
        elif name == "emphysema":
            hu[where] = emphysema(rng, part, margin, below, float(rng.choice(holes)))
    return hu


def _lines(rng: np.random.Generator, field: Field) -> np.ndarray:
    """Return a network of fine lines in [0, 1]: where smooth noise crosses zero."""
    name = rng.choice(["lobule0", "lobule1", "lobule2", "grain1"], p=[0.3, 0.3, 0.25, 0.15])
    mesh = np.abs(field.noise[name] + rng.uniform(0.1, 0.4) * field.noise["grain0"])
    return np.exp(-((mesh / rng.uniform(0.18, 0.42)) ** 2))


def _cells(rng: np.random.Generator, points: np.ndarray, cell_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each point (n, 3) in mm lies from the two nearest of centres scattered round a lesion.

    As the phantom's nearest_cells (Worley 1996), but the centres fill the lesion's own box: a patient has many lesions.

    Returns:
        Distances in mm, shape (n, 2), and the index of the nearest centre, shape (n,).
    """
    low = points.min(axis=0) - 2 * cell_mm
    counts = np.ceil((points.max(axis=0) + 2 * cell_mm - low) / cell_mm).astype(int)
    grid = np.stack(np.meshgrid(*[np.arange(count) for count in counts], indexing="ij"), axis=-1).reshape(-1, 3)
    centres = low + (grid + 0.5 + rng.uniform(-0.48, 0.48, grid.shape)) * cell_mm
    distance, index = cKDTree(centres[rng.random(len(centres)) < 0.7]).query(points, k=2)
    return distance, index[:, 0]


def _luck(cell: np.ndarray) -> np.ndarray:
    """Return a number in [0, 1) that is the same at all points of a cell and looks random between cells."""
    return (cell * 2654435761 % 97) / 97.0  # Knuth's multiplicative hash
