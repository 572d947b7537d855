"""The thorax of the phantom: shapes in mm, branching trees and smooth noise, all independent of the voxel grid.

Coordinates are mm in the patient: x grows to the left, y to the back, z to the head, with z = 0 at the lung bases.
"""

import dataclasses
import functools

import numpy as np

# Box that every noise field covers (mm); it holds the largest body, so that a patient is the same at any voxel size.
BOX_MM = ((-200.0, 200.0), (-200.0, 200.0), (-15.0, 275.0))
AIR_HU, FAT_HU, MUSCLE_HU, BLOOD_HU, LIVER_HU, MARROW_HU, CORTEX_HU = -1000, -100, 50, 40, 58, 190, 650
CAVITY_MM = (126.0, 90.0)  # half axes of the thoracic cavity at its widest, x and y
CAVITY_Y_MM = -4.0  # its centre lies a little in front of the origin
SPINE_Y_MM = 56.0  # centre of the vertebral bodies
CARINA_LEVEL = 0.60  # height of the tracheal bifurcation, as a fraction of the lung height
BENDING = 1.3  # how far a branch swings out before it turns to its end; 1 is a cubic Hermite curve
TERMINAL_RADIUS_MM = (0.22, 0.52)  # finest vessels that are drawn
MURRAY_EXPONENT = 2.5  # r_parent^p = sum of r_child^p (Murray 1926 has p = 3; measured pulmonary arteries less)


@dataclasses.dataclass(frozen=True)
class Build:
    """What makes one body differ from another."""

    height_mm: float  # of the lung
    width: float  # factor on the transverse sizes
    fat_mm: float  # thickness of the subcutaneous fat
    heart: float  # factor on its size
    airway: float  # factor on the calibre of the airways


def smooth_noise(rng: np.random.Generator, axes: tuple, sigma_mm: float) -> np.ndarray:
    """Return Gaussian noise of unit variance, smooth over ``sigma_mm``, on a grid that may be of any spacing.

    Noise on knots that stand ``sigma_mm`` apart in BOX_MM is spread by Gaussians; the grid (positions in mm along x, y
    and z) only samples the result: float32, shape (len(x), len(y), len(z)).
    """
    weights = []
    for (low, high), positions in zip(BOX_MM, axes):
        knots = np.arange(low - 2 * sigma_mm, high + 3 * sigma_mm, sigma_mm)
        positions = np.clip(positions, low, high)  # a wide picture shows air beyond the box
        weight = np.exp(-0.5 * ((positions[:, None] - knots) / sigma_mm) ** 2)
        weights.append((weight / np.linalg.norm(weight, axis=1, keepdims=True)).astype(np.float32))
    noise = rng.standard_normal([weight.shape[1] for weight in weights], dtype=np.float32)
    noise = noise @ weights[2].T
    noise = np.tensordot(weights[0], noise, axes=1)
    return np.matmul(weights[1], noise)


def ellipsoid_mm(x, y, z, centre: tuple, radii: tuple):
    """Return an approximate signed distance (mm) to an ellipsoid, negative inside."""
    squares = [((value - c) / r) ** 2 for value, c, r in zip((x, y, z), centre, radii)]
    return (np.sqrt(squares[0] + squares[1] + squares[2]) - 1) * min(radii)


def outside_cavity_mm(x, y, z, build: Build):
    """Return the approximate distance (mm) from the inner chest wall, negative inside the cavity."""
    level = np.clip(z / build.height_mm, 0, 1.1)
    narrowing = 1 - 0.42 * np.clip((level - 0.35) / 0.65, 0, None) ** 2
    scale = build.width * narrowing
    y = y - CAVITY_Y_MM
    radius = ((np.abs(x) / (CAVITY_MM[0] * scale)) ** 2.3 + (np.abs(y) / (CAVITY_MM[1] * scale)) ** 2.3) ** (1 / 2.3)
    return np.sqrt(x**2 + y**2) * (1 - 1 / np.maximum(radius, 0.05))


def mediastinum_mm(x, y, z, build: Build):
    """Return the approximate distance (mm) from heart, great vessels and spine, negative inside."""
    height, heart = build.height_mm, build.heart
    parts = [
        ellipsoid_mm(x, y, z, (26, -26, 0.31 * height), (60 * heart, 46 * heart, 62)),
        ellipsoid_mm(x, y, z, (2, -8, 0.75 * height), (33, 47, 0.40 * height)),
        ellipsoid_mm(x, y, z, (-6, 8, 0.2 * height), (25, 50, 0.5 * height)),
        ellipsoid_mm(np.abs(x), y, z, (36, 8, 0.53 * height), (19, 17, 27)),
        np.hypot(x - 25, y - 40) - 13 + 30 * np.clip(z / height - 0.74, 0, None),
        ellipsoid_mm(x, y, z, (14, 8, 0.70 * height), (27, 40, 22)),
        np.abs(x) - 4 - 0.35 * np.clip(y + 70, 0, 40) - 20 * np.clip(z / height - 0.9, 0, None),
        np.where(
            y > 20,
            np.hypot(np.abs(x), np.minimum(y - SPINE_Y_MM, 0)) - 22 - 0.012 * np.clip(y - SPINE_Y_MM, 0, 40) ** 2,
            50,
        ),
    ]
    return functools.reduce(np.minimum, parts)


def outside_lung_mm(x, y, z, build: Build):
    """Return the approximate distance (mm) from the lung surface, negative inside; arguments broadcast."""
    height = build.height_mm
    side = np.abs(x)
    dome = (64 + 12 * (x < 0)) * (1 - ((side - 58) / 88) ** 2 - ((y + 12) / 86) ** 2)
    apex = height * (1 - 0.22 * (np.sqrt(((side - 50) / 60) ** 2 + ((y + 2) / 68) ** 2) / build.width) ** 3)
    walls = np.maximum(outside_cavity_mm(x, y, z, build), -mediastinum_mm(x, y, z, build))
    return np.maximum(walls, np.maximum(dome - z, z - apex))


def grow_tree(
    rng: np.random.Generator, build: Build, side: int, tips: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grow a tree from the hilum into one lung (``side`` is -1 right, 1 left) to a number of tips.

    Tips are scattered in the lung and joined, nearest to the hilum first, to the node that costs least in new length
    plus a share of the way back to the hilum (balanced minimum spanning tree, Cuntz et al. 2010).

    Returns:
        Nodes (tips + 1, 3) in mm, the parent of each node, and the radius (mm) of the branch that ends in each node.
    """
    height = build.height_mm
    hilum = np.array([36.0 * side, 9.0, 0.53 * height])
    tries = rng.uniform((0, -95, 0), (130, 95, height), (tips * 5, 3)) * (side, 1, 1)
    inside = tries[outside_lung_mm(*tries.T, build) < -4.0]
    targets = inside[:tips]
    targets = targets[np.argsort(np.linalg.norm(targets - hilum, axis=1))]
    nodes = np.empty((len(targets) + 1, 3))
    nodes[0] = hilum
    nodes[1:] = targets
    way = np.zeros(len(nodes))
    parent = np.zeros(len(nodes), int)
    for new in range(1, len(nodes)):
        length = np.sqrt(((nodes[:new] - nodes[new]) ** 2).sum(axis=1))
        best = int(np.argmin(length + 0.35 * way[:new]))
        parent[new], way[new] = best, way[best] + length[best]
    power = np.zeros(len(nodes))
    leaf = np.bincount(parent[1:], minlength=len(nodes)) == 0
    power[leaf] = rng.uniform(*TERMINAL_RADIUS_MM, leaf.sum()) ** MURRAY_EXPONENT
    for node in range(len(nodes) - 1, 0, -1):
        power[parent[node]] += power[node]
    return nodes, parent, power ** (1 / MURRAY_EXPONENT)


def sample_tree(tree: tuple, step_mm: float, smallest_mm: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return points (n, 3) along the branches of a tree, ``step_mm`` apart, and the tapering radius (mm) at each.

    Branches thinner than ``smallest_mm`` are left out.
    """
    nodes, parent, radius = tree
    ends = np.flatnonzero(radius[1:] >= smallest_mm) + 1
    starts = parent[ends]
    counts = np.maximum(np.ceil(np.linalg.norm(nodes[ends] - nodes[starts], axis=1) / step_mm).astype(int), 1)
    which = np.repeat(np.arange(len(ends)), counts)
    part = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + 1) / counts[which]
    chord = nodes[ends] - nodes[starts]
    before = nodes[starts] - nodes[parent[starts]]  # a branch leaves in the direction of the one it comes from
    before *= (np.linalg.norm(chord, axis=1) / np.maximum(np.linalg.norm(before, axis=1), 1e-6))[:, None]
    bend = (part * (1 - part) ** 2)[:, None] * BENDING * (before - chord)[which]
    points = nodes[starts[which]] + part[:, None] * chord[which] + bend
    wide = np.minimum(radius[starts[which]], 1.5 * radius[ends[which]])
    return points, wide * (1 - part) + radius[ends[which]] * part


def draw_tubes(shape: tuple, axes: tuple, points: np.ndarray, radii: np.ndarray, slab_mm: float) -> np.ndarray:
    """Draw balls along tubes as the share of each voxel that they cover, float32 in [0, 1], shape (W, H, slices).

    ``axes`` holds the evenly spaced positions (mm) of the voxels; centres (n, 3) and radii (n,) are in mm. The slab, a
    slice's thickness, may be less than the slice spacing.
    """
    cover = np.zeros(shape, np.float32)
    pixel = axes[0][1] - axes[0][0]
    spacing = axes[2][1] - axes[2][0]
    first = np.array([axis[0] for axis in axes])
    for below in range(int(np.ceil((radii.max(initial=0) + slab_mm / 2) / spacing)) + 1):
        for k_offset in {below, -below}:
            k = np.rint((points[:, 2] - first[2]) / spacing).astype(int) + k_offset
            away = np.abs(points[:, 2] - first[2] - k * spacing) - slab_mm / 2
            chord = np.sqrt(np.clip(radii**2 - np.clip(away, 0, None) ** 2, 0, None))  # radius of the ball in the slice
            keep = (chord > 0) & (k >= 0) & (k < shape[2])
            reach_all = np.ceil(chord / pixel + 0.5).astype(int)
            for reach in np.unique(reach_all[keep]):
                some = keep & (reach_all == reach)
                _splat(cover, (points[some, :2] - first[:2]) / pixel, k[some], chord[some] / pixel, int(reach))
    return cover


def _splat(cover: np.ndarray, centre: np.ndarray, k: np.ndarray, radius: np.ndarray, reach: int) -> None:
    """Raise ``cover`` to the share that discs (centres and radii in voxels) cover; equal ``reach`` for all of them."""
    window = np.arange(-reach, reach + 1)
    nearest = np.rint(centre).astype(int)
    i = nearest[:, 0, None, None] + window[:, None]
    j = nearest[:, 1, None, None] + window
    distance = np.sqrt((i - centre[:, 0, None, None]) ** 2 + (j - centre[:, 1, None, None]) ** 2)
    radius = radius[:, None, None]
    share = np.clip(radius - distance + 0.5, 0, 1) * np.minimum(1, 1.8 * radius)
    i, j, k = np.broadcast_arrays(i, j, k[:, None, None])
    inside = (i >= 0) & (i < cover.shape[0]) & (j >= 0) & (j < cover.shape[1]) & (share > 0)
    np.maximum.at(cover, (i[inside], j[inside], k[inside]), share[inside].astype(np.float32))


def central_airways(build: Build) -> tuple[np.ndarray, np.ndarray]:
    """Return points (n, 3) in mm and radii (mm) along the trachea and the main bronchi."""
    height = build.height_mm
    carina = np.array([0.0, 24.0, CARINA_LEVEL * height])
    branches = [
        (carina, np.array([0.0, 8.0, 1.2 * height]), 8.8, 8.8),
        (carina, np.array([-37.0, 12.0, 0.53 * height]), 7.2, 5.5),
        (carina, np.array([39.0, 14.0, 0.52 * height]), 6.6, 5.0),
    ]
    points, radii = [], []
    for start, end, r_start, r_end in branches:
        part = np.linspace(0, 1, 140)[:, None]
        points.append(start * (1 - part) + end * part)
        radii.append((r_start * (1 - part) + r_end * part)[:, 0])
    return np.concatenate(points), np.concatenate(radii) * build.airway


def body_half_axes_mm(build: Build) -> tuple[float, float]:
    """Return the half axes of the skin's outline along x and y."""
    return CAVITY_MM[0] * build.width + 18 + build.fat_mm, CAVITY_MM[1] * build.width + 17 + build.fat_mm


def draw_body(x: np.ndarray, y: np.ndarray, z: np.ndarray, build: Build, patches: np.ndarray) -> np.ndarray:
    """Draw everything around the lungs: air, skin, fat, muscle, bones, heart and abdomen; float32 HU.

    ``x`` and ``y`` are positions in mm, shape (W, H, slices), warped by a few mm so that no outline is a perfect
    ellipse; ``z`` has shape (slices,). ``patches`` is smooth unit noise that places fat between organs, shape as ``x``.
    """
    height = build.height_mm
    wall = outside_cavity_mm(x, y, z, build)
    level = np.clip(z / height, 0, 1)
    half = body_half_axes_mm(build)
    radius = ((np.abs(x) / half[0]) ** 2.5 + (np.abs(y + 2) / (half[1] * (1 - 0.1 * level**3))) ** 2.5) ** 0.4
    skin = np.hypot(x, y + 2) * (1 - 1 / np.maximum(radius, 0.05))  # mm outside the skin
    hu = np.full(x.shape, AIR_HU, np.float32)
    hu[skin < 0] = FAT_HU
    hu[(skin < 0) & (skin > -2)] = -10
    deep = skin < -(build.fat_mm * (1 + 0.25 * np.tanh(patches)) + 2)
    hu[deep] = MUSCLE_HU
    hu[deep & (wall > 0) & (np.abs(patches - 0.3) < 0.17)] = FAT_HU + 10  # planes of fat between muscles
    inside = wall <= 0
    hu[inside] = np.where(patches[inside] > 0.5, FAT_HU + 20, BLOOD_HU)
    heart = ellipsoid_mm(x, y, z, (26, -26, 0.31 * height), (54 * build.heart, 41 * build.heart, 58)) < 0
    hu[heart] = BLOOD_HU
    dome = (64 + 12 * (x < 0)) * (1 - ((np.abs(x) - 58) / 88) ** 2 - ((y + 12) / 86) ** 2)
    abdomen = inside & (z < dome) & ~heart
    hu[abdomen] = np.where(x[abdomen] < 12, LIVER_HU, np.where(patches[abdomen] > 0.9, FAT_HU, BLOOD_HU))
    great = np.minimum(np.hypot(x - 25, y - 40) - 12, np.hypot(x + 18, y + 12) - 9)  # aorta, superior vena cava
    hu[inside & (great < 0)] = BLOOD_HU
    _draw_bones(hu, x, y, z, build, wall, deep)
    return hu


def _draw_bones(hu: np.ndarray, x, y, z, build: Build, wall: np.ndarray, deep: np.ndarray) -> None:
    """Draw ribs, vertebrae, sternum and shoulder blades into ``hu`` (in place)."""
    rib = 23.0 * ((z - 0.62 * y) / 23.0 - np.rint((z - 0.62 * y) / 23.0))  # ribs slope down to the front
    rib = np.hypot(rib / 1.35, wall - 6.5)
    rib = np.where(deep & (np.abs(x) > 20), rib, 99)
    cartilage = (y < -45) & (np.abs(x) < 75)
    blade = np.hypot((np.abs(x) - 88 - 0.55 * (y - 60)) / 1.0, np.clip(np.abs(y - 72) - 22, 0, None))
    blade = np.where((z > 0.5 * build.height_mm) & deep & (wall > 15), blade, 99)
    disc = np.abs(z / 26.0 - np.rint(z / 26.0)) > 0.40
    body = (np.sqrt((x / 19) ** 2 + ((y - SPINE_Y_MM) / 15.5) ** 2) - 1) * 15.5
    arch = np.where(np.hypot(x, y - SPINE_Y_MM - 23) > 8.5, np.hypot(x, y - SPINE_Y_MM - 23) - 13, 9)
    process = np.maximum(np.abs(x) - 3.5, np.abs(y - SPINE_Y_MM - 42) - 12)
    transverse = np.maximum(np.abs(y - SPINE_Y_MM - 24 - 0.2 * np.abs(x)) - 4.0, np.abs(x) - 36)
    transverse = np.where(np.hypot(x, y - SPINE_Y_MM - 23) > 8.5, transverse, 9)
    sternum = np.maximum(np.abs(x) - 17, np.abs(wall - 6.5) - 5)
    sternum = np.where((y < 0) & (z > 0.3 * build.height_mm), sternum, 99)
    bones = [rib - 5.2, blade - 2.6, body, np.minimum(arch, np.minimum(process, transverse)), sternum]
    nearest = np.minimum.reduce(np.broadcast_arrays(*bones))
    hu[nearest < 0] = np.where(nearest[nearest < 0] > -1.6, CORTEX_HU, MARROW_HU)
    hu[(body < 0) & disc] = 95
    hu[(rib < 5.2) & cartilage] = 120


def draw_table(hu: np.ndarray, x: np.ndarray, y: np.ndarray, build: Build) -> None:
    """Draw a curved table of carbon fibre over foam behind the body in ``hu`` (in place); ``x`` and ``y`` are in mm."""
    depth = y - body_half_axes_mm(build)[1] - 5 + x**2 / 700.0  # mm below the cradle, which rises at both sides
    free = (hu < -900) & (np.abs(x) < 150)
    hu[free & (depth > 0) & (depth < 26)] = -930
    hu[free & (np.abs(depth - 1.5) < 1.8)] = -120
    hu[free & (np.abs(depth - 26) < 1.5)] = -250
