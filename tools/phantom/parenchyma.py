"""The lung tissue of the phantom: where each tissue lies, what its texture is, and what the scanner makes of it."""

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from tools.phantom import anatomy

SLAB_MM = 2.5  # thickness of a slice; like high-resolution CT of the lung, the slices leave gaps
BROAD_MM, PATCH_MM, LOBULE_MM, GRAIN_MM = 26.0, 11.0, 5.0, 2.6  # widths of the noise fields
GLASS_HU, HOLE_HU, SOLID_HU = -640, -968, 18
GRAVITY_HU_PER_MM = 0.42  # denser towards the back, where the patient lies
CYST_MM, CYST_WALL_MM = 5.6, 0.9  # honeycombing: distance between cysts and half thickness of their walls
TIPS = 1200  # of each of the four vessel trees
HOLE_MM = 7.0  # emphysema: distance between the centres of lobules
# Blur, edge gain and noise (standard deviation before the patient's dose factor) of the reconstruction kernels.
KERNELS = {
    "soft": {"blur_mm": 0.75, "edge": 0.0, "noise_hu": 13.0, "noise_blur_mm": 1.0},
    "lung": {"blur_mm": 0.30, "edge": 0.30, "noise_hu": 31.0, "noise_blur_mm": 0.45},
}


@dataclasses.dataclass(frozen=True)
class LungVoxels:
    """The n voxels of the lungs of one patient."""

    points: np.ndarray  # x, y and z in mm, shape (n, 3)
    depth_mm: np.ndarray  # distance from the chest wall, shape (n,)
    level: np.ndarray  # height above the bases as a fraction of the lung height, shape (n,)
    noise: dict[str, np.ndarray]  # of unit variance, each (n,): broad0 to 3, patch0 to 3, lobule0, lobule1 and grain


def noise_fields(place_rng, texture_rng, axes: tuple, lung: np.ndarray) -> dict[str, np.ndarray]:
    """Return the noise of LungVoxels: broad and patch fields place the tissues, the finer ones are texture.

    ``axes`` holds positions (mm) along x, y and z, ``lung`` is a mask of shape (W, H, slices).
    """
    box = ndimage.find_objects(lung.view(np.uint8))[0]
    axes, lung = tuple(axis[part] for axis, part in zip(axes, box)), lung[box]
    noise = {}
    for name, width in (("broad", BROAD_MM), ("patch", PATCH_MM)):
        noise |= {f"{name}{n}": anatomy.smooth_noise(place_rng, axes, width)[lung] for n in range(4)}
    for name, width in (("lobule0", LOBULE_MM), ("lobule1", LOBULE_MM), ("grain", GRAIN_MM)):
        noise[name] = anatomy.smooth_noise(texture_rng, axes, width)[lung]
    return noise


def place_tissues(scores: dict[str, np.ndarray], shares: dict[str, float], labels: dict[str, int]):
    """Give each tissue its exact share of the lung, where its score is highest.

    ``scores`` holds the preference of each pathological tissue at the n voxels of the lung, in the order of placing; a
    tissue that ``shares`` does not name is left out. Returns label values, uint8 (n,), and for each tissue the score
    less the score at its border.
    """
    values = np.full(len(next(iter(scores.values()))), labels["healthy"], np.uint8)
    margins = {}
    for tissue, score in scores.items():
        free = np.flatnonzero(values == labels["healthy"])
        wanted = min(round(shares.get(tissue, 0.0) * len(values)), len(free) - 1)
        if wanted < 1:
            continue
        order = np.argpartition(-score[free], wanted)
        values[free[order[:wanted]]] = labels[tissue]
        margins[tissue] = score - score[free[order[wanted]]]
    return values, margins


def location_scores(voxels: LungVoxels, history: str) -> dict[str, np.ndarray]:
    """Return how much each pathological tissue likes each voxel of the lung, shape (n,), in the order of placing.

    Consolidation and ground glass like the lower back, fibrosis the pleura and the bases, emphysema the core and apex;
    the history is smoker, exposure, post-infection or none.
    """
    noise, level = voxels.noise, voxels.level
    back = voxels.points[:, 1] / 80.0
    subpleural = np.exp(-voxels.depth_mm / 18.0)
    consolidation = 1.2 * noise["broad0"] + 0.4 * noise["patch0"] + 0.22 * noise["lobule0"]
    consolidation += 0.9 * back - 1.6 * level + 0.3 * subpleural
    fibrosis = 0.9 * noise["broad1"] + 0.5 * noise["patch1"] + 0.2 * noise["lobule1"]
    fibrosis += 2.8 * subpleural - 2.6 * level + 0.5 * back
    emphysema = 0.6 * noise["broad2"] + 0.75 * noise["patch2"] + 3.0 * level - 0.8 * subpleural
    haze = 0.9 * noise["broad3"] + 0.6 * noise["patch3"] + 0.3 * noise["lobule0"] - 0.8 * level + 0.4 * back
    if history == "post-infection":
        haze += 0.35 * consolidation + 0.5 * subpleural  # a halo around the consolidation
    if history == "exposure":
        haze += 0.30 * fibrosis
    return {"consolidation": consolidation, "fibrosis": fibrosis, "emphysema": emphysema, "ground_glass": haze}


def nearest_cells(rng: np.random.Generator, points: np.ndarray, cell_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how far points (n, 3) lie from the two nearest of scattered centres (Worley 1996), and the first's index.

    The centres are a jittered grid over anatomy.BOX_MM, ``cell_mm`` apart; distances in mm have shape (n, 2).
    """
    counts = [int((high - low) / cell_mm) for low, high in anatomy.BOX_MM]
    jitter = rng.uniform(-0.48, 0.48, (*counts, 3)).astype(np.float32)
    centres = np.stack(np.meshgrid(*[np.arange(count) for count in counts], indexing="ij"), axis=-1) + 0.5 + jitter
    centres = centres.reshape(-1, 3)[rng.random(jitter.size // 3) < 0.7] * cell_mm + [low for low, _ in anatomy.BOX_MM]
    if len(points):
        low, high = points.min(axis=0) - 2 * cell_mm, points.max(axis=0) + 2 * cell_mm
        centres = centres[((centres > low) & (centres < high)).all(axis=1)]
    distance, index = cKDTree(centres).query(points, k=2)
    return distance, index[:, 0]


def tissue_hu(
    rng: np.random.Generator,
    voxels: LungVoxels,
    values: np.ndarray,
    margins: dict[str, np.ndarray],
    labels: dict[str, int],
    healthy_hu: float,
    pixel_mm: float,
) -> np.ndarray:
    """Return the HU of the tissue at each voxel of the lung, shape (n,), before vessels, airways and scanner.

    ``values`` (n,) and ``margins`` are those of place_tissues, ``healthy_hu`` the mean of healthy lung at mid depth;
    no line is drawn thinner than what the in-plane voxel size ``pixel_mm`` resolves.
    """
    noise, back_mm = voxels.noise, voxels.points[:, 1]
    healthy = healthy_hu + GRAVITY_HU_PER_MM * back_mm + 9 * noise["patch0"] + 10 * noise["lobule0"]
    haze = GLASS_HU + 0.3 * back_mm + 55 * noise["patch1"] + 28 * noise["lobule1"] + 32 * noise["grain"]
    hu = healthy.copy()
    at = {tissue: np.flatnonzero(values == labels[tissue]) for tissue in margins}
    if "ground_glass" in at:
        where = at["ground_glass"]
        density = np.clip(0.45 + 1.2 * margins["ground_glass"][where], 0.45, 1.0)  # fades towards the border
        hu[where] = healthy[where] * (1 - density) + haze[where] * density
    if "fibrosis" in at:
        hu[at["fibrosis"]] = _fibrosis_hu(rng, voxels, at["fibrosis"], pixel_mm)
    if "emphysema" in at:
        where = at["emphysema"]
        hole = _emphysema_holes(rng, voxels, where, margins["emphysema"][where], pixel_mm)
        hu[where] = (healthy[where] + 14) * (1 - hole) + (HOLE_HU + 6 * noise["lobule1"][where]) * hole
    if "consolidation" in at:
        where = at["consolidation"]
        density = np.clip(0.5 + 1.1 * margins["consolidation"][where], 0.5, 1.0)
        solid = SOLID_HU + 22 * noise["lobule0"][where] + 14 * noise["patch1"][where]
        hu[where] = haze[where] * (1 - density) + solid * density
    return hu


def _fibrosis_hu(rng: np.random.Generator, voxels: LungVoxels, where: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Return the HU of fibrosis: a network of lines, and below the pleura clusters of cysts with shared walls."""
    noise = {name: field[where] for name, field in voxels.noise.items()}
    mesh = np.abs(noise["lobule1"] + 0.25 * noise["grain"])  # lines run where the noise crosses zero
    lines = np.exp(-((mesh / 0.27) ** 2))
    reticular = -775 + 45 * noise["patch0"] + 30 * noise["lobule0"] + 410 * lines
    distance, cell = nearest_cells(rng, voxels.points[where], CYST_MM)
    edge = distance[:, 1] - distance[:, 0]  # 0 on the wall between two cysts
    wall = np.exp(-((edge / (2 * max(CYST_WALL_MM, 0.45 * pixel_mm))) ** 2))
    luck = _per_cell(cell)
    inner = np.where(luck < 0.82, -935 + 70 * luck, -600)  # some cysts are filled
    honeycomb = inner * (1 - wall) - 330 * wall
    share = np.clip(1.6 * noise["patch2"] + 1.2 - voxels.depth_mm[where] / 8.0, 0, 1)
    return reticular * (1 - share) + honeycomb * share


def _emphysema_holes(rng, voxels: LungVoxels, where: np.ndarray, margin: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Return the share of each voxel that centrilobular holes take; they are wider deep inside the affected region."""
    distance, cell = nearest_cells(rng, voxels.points[where], HOLE_MM)
    radius = 2.0 + 3.0 * _per_cell(cell) ** 2 + 1.0 * np.clip(margin, 0, 1.5)
    inside = radius - distance[:, 0] + 0.7 * voxels.noise["grain"][where]
    return np.clip(inside / max(0.9, 0.5 * pixel_mm) + 0.5, 0, 1)


def _per_cell(cell: np.ndarray) -> np.ndarray:
    """Return a number in [0, 1) that is the same at all points of a cell and looks random between cells."""
    return (cell * 2654435761 % 97) / 97.0  # Knuth's multiplicative hash


def draw_trees(rng: np.random.Generator, build: anatomy.Build, shape: tuple, axes: tuple) -> dict:
    """Draw vessels and bronchi of both lungs and the central airways as the share of each voxel that they cover.

    Positions (mm) of the (W, H, slices) voxels along x, y and z are ``axes``.

    Returns:
        Maps in [0, 1]: vessel, hilar (the thick ones), wall and lumen (bronchi wider than 2 mm), fine (all bronchi),
        trachea_wall and trachea (main bronchi included).
    """
    step = 0.7 * (axes[0][1] - axes[0][0])
    vessels, bronchi = [], []
    for side in (-1, 1):
        for accompanied in (True, False):
            tree = anatomy.grow_tree(rng, build, side, TIPS)
            vessels.append(anatomy.sample_tree(tree, step))
            if accompanied:  # a bronchus runs beside each artery
                points, radius = anatomy.sample_tree(tree, step, 0.3)
                beside = np.array([0.45 * side, 0.75, 0.48])
                bronchi.append((points + beside * (1.9 * radius + 0.9)[:, None], 0.9 * radius * build.airway))
    points, radius = (np.concatenate(part) for part in zip(*vessels))
    thick = radius > 3.2
    maps = {
        "vessel": anatomy.draw_tubes(shape, axes, points, radius, SLAB_MM),
        "hilar": anatomy.draw_tubes(shape, axes, points[thick], radius[thick], SLAB_MM),
    }
    points, radius = (np.concatenate(part) for part in zip(*bronchi))
    wide = radius > 1.0 * build.airway
    maps["wall"] = anatomy.draw_tubes(shape, axes, points[wide], radius[wide] + 0.9, SLAB_MM)
    maps["lumen"] = anatomy.draw_tubes(shape, axes, points[wide], radius[wide], SLAB_MM)
    maps["fine"] = anatomy.draw_tubes(shape, axes, points, 1.5 * radius + 0.6, 2 * SLAB_MM)
    points, radius = anatomy.central_airways(build)
    maps["trachea_wall"] = anatomy.draw_tubes(shape, axes, points, radius + 1.4, SLAB_MM)
    maps["trachea"] = anatomy.draw_tubes(shape, axes, points, radius, SLAB_MM)
    return maps


def add_trees(hu: np.ndarray, trees: dict, label: np.ndarray, labels: dict[str, int]) -> None:
    """Draw vessels and airways, maps of draw_trees, into ``hu`` (in place), shape (W, H, slices) as the label values.

    Vessels stand out in all tissue but consolidation, which is as dense; there the bronchi show (air bronchogram).
    """
    solid = label == labels["consolidation"]
    near = ndimage.maximum_filter(label > 0, (3, 3, 1)) | (trees["hilar"] > 0)
    cover = np.where(near, trees["vessel"], 0)
    cover[label == labels["emphysema"]] *= 0.6  # destroyed lung has lost vessels
    hu += cover * (anatomy.BLOOD_HU - hu)
    hu += 0.6 * trees["wall"] * ~solid * (-60 - hu)
    pulled = 0.6 * (label == labels["fibrosis"])  # traction bronchiectasis
    hu += np.maximum(np.where(solid, 0.9, pulled) * trees["fine"], trees["lumen"] * ~solid) * (-960 - hu)
    hu += trees["trachea_wall"] * (20 - hu)
    hu += trees["trachea"] * (anatomy.AIR_HU - hu)


def reconstruct(rng: np.random.Generator, hu: np.ndarray, pixel_mm: float, kernel: str, dose: float) -> np.ndarray:
    """Return what a scanner makes of drawn HU, shape (W, H, slices): blurred or sharpened, and noisy; float32.

    ``kernel`` is a key of KERNELS, ``pixel_mm`` the in-plane voxel size, ``dose`` a factor on the noise (low: above 1).
    """
    settings = KERNELS[kernel]
    blurred = _blur(hu, settings["blur_mm"] / pixel_mm)
    if settings["edge"]:
        blurred += settings["edge"] * (blurred - _blur(blurred, 1.6 / pixel_mm))
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    noise = _blur(noise, max(settings["noise_blur_mm"] / pixel_mm, 0.35))
    if kernel == "lung":
        noise -= 0.8 * _blur(noise, max(1.8 / pixel_mm, 0.9))  # a sharp kernel amplifies the high frequencies
    noise *= settings["noise_hu"] * dose / noise.std()
    return blurred + noise


def _blur(volume: np.ndarray, sigma: float) -> np.ndarray:
    """Return the volume blurred in plane by a Gaussian of ``sigma`` voxels."""
    return ndimage.gaussian_filter(volume, (sigma, sigma, 0), truncate=3.0, mode="nearest")
