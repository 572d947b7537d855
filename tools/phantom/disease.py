"""Disease of random kind, place and texture drawn into the lungs of a real CT; the scanner's noise stays its own."""

import dataclasses

import numpy as np
from scipy import ndimage

from tools.phantom import texture
from tools.phantom.parenchyma import LungVoxels, location_scores, place_tissues

FINE_MM = 1.2  # what is finer belongs to kernel and noise and is added back
BASE_MM = 5.0  # width of the mean that tells the lung's own density, vessels left out
VESSEL_HU = 90.0  # above that density a voxel counts as vessel
RIM_MM = 2.5  # partial volume between lung and chest wall, in which dense disease is seen too
BLOOD_HU = 30.0
WALL_HU = -200.0  # above it lies the chest wall, fat included
FAR_MM = 1e6  # between slices, where only what lies in one slice counts
NOISE_SHIFT = (11, 7)  # voxels
MARGIN_MM = 4.0  # as far inside a given lesion lies what counts as well inside
EXISTING_DENSE_HU, EXISTING_DENSE_SHARE = -500.0, 0.15  # of a host that has dense disease already
# Mean share of each tissue in the involved lung, and the range of the share of the lung that is involved.
KINDS = {
    "none": ({"ground_glass": 0.7, "fibrosis": 0.3}, (0.0, 0.03)),
    "smoker": ({"ground_glass": 0.15, "fibrosis": 0.10, "emphysema": 0.75}, (0.10, 0.75)),
    "exposure": ({"ground_glass": 0.35, "fibrosis": 0.60, "emphysema": 0.05}, (0.10, 0.65)),
    "post-infection": ({"ground_glass": 0.47, "consolidation": 0.46, "fibrosis": 0.07}, (0.10, 0.85)),
}
HALO = 0.6  # how often ground glass surrounds the consolidation of a case
HALO_MM = (2.0, 14.0)
OUTLINE_MM = 3.0  # up to which readers draw across the gaps and frayed borders of consolidation
DEPENDENT = 0.35  # how often consolidation fills the lungs from the back, where the patient lies
KIND_SHARES = (0.12, 0.20, 0.20, 0.48)  # how often each kind is drawn


@dataclasses.dataclass(frozen=True)
class Case:
    """What is drawn into one host.

    Attributes:
        kind: none, smoker, exposure or post-infection.
        severity: share of the lung that is to be diseased.
        mixture: share of each tissue in the diseased lung; sums to 1.
    """

    kind: str
    severity: float
    mixture: dict[str, float]


def describe_case(rng: np.random.Generator, kind: str | None = None) -> Case:
    """Draw what is to be drawn, of a given kind or of any."""
    kind = str(rng.choice(list(KINDS), p=KIND_SHARES)) if kind is None else kind
    shares, (low, high) = KINDS[kind]
    drawn = rng.dirichlet([4.0 * share for share in shares.values()])  # patients of one kind differ widely
    severity = low + (high - low) * float(rng.beta(1.1, 1.5))
    return Case(kind, severity, {tissue: float(share) for tissue, share in zip(shares, drawn)})


def draw_disease(
    rng: np.random.Generator,
    hu: np.ndarray,
    lung: np.ndarray,
    voxel_mm: tuple[float, float, float],
    case: Case,
    labels: dict[str, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Draw disease into a CT.

    Args:
        rng: source of all draws.
        hu: CT in HU, shape (W, H, slices), axes along left, back and head.
        lung: bool, the lungs with their vessels, of the same shape; at least one voxel.
        voxel_mm: size of a voxel.
        case: what to draw.
        labels: tissue name to value.

    Returns:
        HU as float32 and label values as uint8, both of the shape of ``hu``. Outside the lung HU change only where a
        dense lesion touches it, in the rim of RIM_MM whose voxels hold both.
    """
    lungs = _lungs_of(rng, hu, lung, voxel_mm)
    scores = _scores(rng, lungs.field, case.kind)
    shares = {tissue: share * case.severity for tissue, share in case.mixture.items()}
    values, margins = place_tissues({t: s for t, s in scores.items() if t in shares}, shares, labels)
    part_label = np.zeros(lungs.lung.shape, np.uint8)
    part_label[lungs.lung] = values
    if rng.random() < HALO:
        _surround(rng, part_label, lungs, margins, labels, voxel_mm)
    answer, label = hu.astype(np.float32), np.zeros(hu.shape, np.uint8)
    label[lung] = labels["healthy"]
    answer[lungs.box] = _drawn(rng, lungs, part_label, margins, labels)
    label[lungs.box] = _outlined(rng, part_label, labels, voxel_mm)
    return answer, label


def fill_lesions(
    rng: np.random.Generator,
    hu: np.ndarray,
    lung: np.ndarray,
    lesions: np.ndarray,
    voxel_mm: tuple[float, float, float],
    labels: dict[str, int],
) -> np.ndarray:
    """Draw disease into a CT where a map of lesions says so.

    Args:
        rng: source of all draws.
        hu: CT in HU, shape (W, H, slices), axes along left, back and head.
        lung: bool, the lungs with their vessels, of the same shape; at least one voxel.
        lesions: values of the tissues to draw, 0 where nothing is, of the same shape.
        voxel_mm: size of a voxel.
        labels: tissue name to value.

    Returns:
        HU, float32, of the same shape.
    """
    lungs = _lungs_of(rng, hu, lung, voxel_mm)
    part = np.where(lungs.lung & (lesions[lungs.box] > labels["healthy"]), lesions[lungs.box], 0)
    part = np.where(lungs.lung & (part == 0), labels["healthy"], part).astype(np.uint8)
    margins = {}
    for name, value in labels.items():
        inside = part == value
        depth_mm = ndimage.distance_transform_edt(inside, sampling=voxel_mm) if inside.any() else np.zeros(part.shape)
        margins[name] = (depth_mm / MARGIN_MM)[lungs.lung].astype(np.float32)
    answer = hu.astype(np.float32)
    answer[lungs.box] = _drawn(rng, lungs, part, margins, labels)
    return answer


@dataclasses.dataclass(frozen=True)
class _Lungs:
    """The box round the lungs of a CT, and what a drawing needs of it; arrays have the box's shape.

    Attributes:
        box: the box within the CT.
        hu, lung: HU, and where lung is.
        smooth: HU without what is finer than FINE_MM.
        base, vessel: HU without vessels, and their share of each voxel.
        scale: voxels per mm.
        field: the lung's voxels with their noise.
    """

    box: tuple[slice, ...]
    hu: np.ndarray
    lung: np.ndarray
    smooth: np.ndarray
    base: np.ndarray
    vessel: np.ndarray
    scale: tuple
    field: texture.Field


def _lungs_of(rng: np.random.Generator, hu: np.ndarray, lung: np.ndarray, voxel_mm: tuple) -> _Lungs:
    """Return what a drawing needs of a CT's lungs."""
    axes, box = _axes(lung, voxel_mm)
    grown = tuple(slice(max(0, p.start - 12), p.stop + 12) if n < 2 else p for n, p in enumerate(box))
    axes = tuple(axis[part] for axis, part in zip(axes, grown))
    part_hu, part_lung = hu.astype(np.float32)[grown], lung[grown]
    scale = (1 / voxel_mm[0], 1 / voxel_mm[1], 0)
    smooth = _blur(part_hu, FINE_MM, scale)
    base, vessel = _base_and_vessels(smooth, part_lung, scale)
    depth_mm = _in_plane_mm(part_lung, voxel_mm).astype(np.float32)
    points = np.stack([np.broadcast_to(a, part_lung.shape)[part_lung] for a in np.ix_(*axes)], axis=1)
    noise = texture.draw_noise(rng, axes, part_lung)
    field = texture.Field(points, depth_mm[part_lung], noise, float(voxel_mm[0]))
    return _Lungs(grown, part_hu, part_lung, smooth, base, vessel, scale, field)


def _drawn(
    rng: np.random.Generator, lungs: _Lungs, label: np.ndarray, margins: dict[str, np.ndarray], labels: dict[str, int]
) -> np.ndarray:
    """Return the HU of the lungs' box with every lesion of a label map drawn; ``margins`` as for ``draw_lesions``."""
    lesions, where = number_lesions(label, labels), lungs.lung
    tissue = np.zeros(where.shape, np.float32)
    tissue[where] = texture.draw_lesions(
        rng, lungs.field, label[where], margins, lesions[where], labels, lungs.base[where]
    )
    return _composite(rng, lungs.hu, lungs.smooth, lungs.base, lungs.vessel, tissue, label, labels, lungs.scale)


def _surround(rng, label: np.ndarray, lungs: _Lungs, margins, labels: dict[str, int], voxel_mm: tuple) -> None:
    """Turn healthy lung near consolidation into ground glass, in place; its margin falls to 0 at its outer border."""
    solid = label == labels["consolidation"]
    if not solid.any():
        return
    away = _in_plane_mm(~solid, voxel_mm)[lungs.lung]
    reach = rng.uniform(*HALO_MM) * np.exp(0.5 * lungs.field.noise["patch3"])
    values = label[lungs.lung]
    halo = (values == labels["healthy"]) & (away < reach)
    values[halo] = labels["ground_glass"]
    label[lungs.lung] = values
    margins.setdefault("ground_glass", np.zeros(len(values), np.float32))[halo] = (1 - away / reach)[halo]


def _in_plane_mm(mask: np.ndarray, voxel_mm: tuple) -> np.ndarray:
    """Return how far each voxel of a mask lies from what is not in it, in its own slice; far where there is none."""
    return ndimage.distance_transform_edt(mask, sampling=(*voxel_mm[:2], FAR_MM))


def _outlined(rng: np.random.Generator, label: np.ndarray, labels: dict[str, int], voxel_mm: tuple) -> np.ndarray:
    """Return label values with consolidation outlined as readers do: gaps filled, a little lung around it held."""
    solid = label == labels["consolidation"]
    gap, rim = rng.uniform(0, OUTLINE_MM, 2) * (1.0, 0.6)
    near = _in_plane_mm(~solid, voxel_mm) <= gap + rim
    solid |= _in_plane_mm(near, voxel_mm) > gap
    softer = np.isin(label, (labels["healthy"], labels["ground_glass"]))
    return np.where(solid & softer, labels["consolidation"], label).astype(label.dtype)


def _axes(lung: np.ndarray, voxel_mm: tuple) -> tuple[tuple, tuple]:
    """Return the positions (mm) along the axes with the lungs' middle and lowest voxel at 0, and the lungs' box."""
    box = ndimage.find_objects(lung.view(np.uint8))[0]
    axes = []
    for axis, (part, size_mm) in enumerate(zip(box, voxel_mm)):
        origin = (part.start + part.stop - 1) / 2 if axis < 2 else part.start
        axes.append(((np.arange(lung.shape[axis]) - origin) * size_mm).astype(np.float32))
    return tuple(axes), box


def _blur(volume: np.ndarray, sigma_mm: float, scale: tuple) -> np.ndarray:
    return ndimage.gaussian_filter(volume, [sigma_mm * s for s in scale], truncate=3.0, mode="nearest")


def _base_and_vessels(smooth: np.ndarray, lung: np.ndarray, scale: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Return the HU of the lung without its vessels, and the share of each voxel that vessels take."""
    inner = smooth[lung]
    weight = (lung & (smooth < np.median(inner) + VESSEL_HU)).astype(np.float32)
    total = _blur(weight, BASE_MM, scale)
    base = _blur(weight * smooth, BASE_MM, scale) / np.maximum(total, 1e-3)
    base = np.where(total > 0.02, base, np.median(inner)).astype(np.float32)
    vessel = np.clip((smooth - base - VESSEL_HU) / (0.6 * (BLOOD_HU - base - VESSEL_HU)), 0, 1)
    return base, np.where(lung, vessel, 0).astype(np.float32)


def _scores(rng: np.random.Generator, field: texture.Field, kind: str) -> dict[str, np.ndarray]:
    """Return the phantom's preferences of place, bent by a random slope so that no place is always spared."""
    noise = {name: field.noise[name] for name in field.noise if name[:-1] in ("broad", "patch", "lobule")}
    height_mm = max(float(field.points[:, 2].max()), 1.0)
    voxels = LungVoxels(field.points, field.depth_mm, field.points[:, 2] / height_mm, noise)
    scores = location_scores(voxels, kind)
    position = np.stack([field.points[:, 0] / 90, field.points[:, 1] / 80, 2 * voxels.level - 1], axis=1)
    if rng.random() < DEPENDENT:
        scores["consolidation"] = scores["consolidation"] + rng.uniform(2, 6) * position[:, 1]
    return {
        tissue: score * rng.uniform(0.5, 1.2)
        + position @ rng.normal(0, (0.7, 0.7, 0.9))
        + rng.uniform(0.2, 1.0) * field.noise[f"patch{number}"]
        + rng.choice([0.1, 0.3, 0.6]) * field.noise["lobule2"]  # smooth, uneven or ragged borders
        + rng.choice([0.0, 0.1, 0.3]) * field.noise["grain1"]
        for number, (tissue, score) in enumerate(scores.items())
    }


def number_lesions(label: np.ndarray, labels: dict[str, int]) -> np.ndarray:
    """Return for each voxel the number of its lesion, a connected piece of one tissue; 0 where none is."""
    numbers = np.zeros(label.shape, np.int32)
    count = 0
    for name, value in labels.items():
        if name not in ("background", "healthy"):
            pieces, found = ndimage.label(label == value)
            numbers[pieces > 0] = pieces[pieces > 0] + count
            count += found
    return numbers


def _composite(
    rng: np.random.Generator, hu, smooth, base, vessel, tissue, label, labels: dict[str, int], scale: tuple
) -> np.ndarray:
    """Return the host's HU with the drawn tissue under its vessels and its noise."""
    solid = (label == labels["consolidation"]).astype(np.float32)
    drawn = (label > labels["healthy"]).astype(np.float32)
    edge_mm = rng.uniform(0.4, 1.1)
    cover = _blur(drawn, edge_mm, scale)
    spread = _blur(tissue * drawn, edge_mm, scale) / np.maximum(cover, 1e-3)  # goes on a little beyond its border
    cover /= np.maximum(_blur((label > 0).astype(np.float32), edge_mm, scale), 1e-3)  # the pleura is no border of it
    inside = np.where(drawn > 0, _blur_within(tissue, label > 0, rng.uniform(0.25, 0.6), scale), spread)
    kept = vessel * (1 - 0.9 * _blur(solid, 1.0, scale)) * np.where(label == labels["emphysema"], 0.7, 1.0)
    fine = hu - smooth
    middle = np.clip(smooth - base, -50, 50) * (1 - vessel) * (1 - 0.7 * solid)
    new = inside + 0.6 * middle
    new += kept * np.maximum(smooth - new, 0)
    if rng.random() < 0.75:
        new = _bronchograms(rng, new, vessel, solid, scale)
    dense = _blur(solid, 1.0, scale)
    inner = _blur((label > 0).astype(np.float32), RIM_MM / 2, scale)  # 1/2 at the pleura
    # a sharp kernel's overshoot along the pleura would betray where dense lung ends; noise from beside replaces it
    border = np.clip(3 * dense, 0, 1) * np.clip(2 - 4 * np.abs(inner - 0.5), 0, 1)
    noise = np.clip(np.roll(fine, NOISE_SHIFT, (0, 1)), -150, 150)
    fine = fine + border * (noise - fine)
    new += fine * np.where(vessel > 0.3, 1 - 0.8 * solid, 1.0)
    mixed = np.where(label > 0, hu + np.clip(cover, 0, 1) * (new - hu), hu)
    wall = _blur_within(hu, (label == 0) & (smooth > WALL_HU), 1.5, scale)
    level = _blur(tissue * solid, 1.0, scale) / np.maximum(dense, 1e-3)
    rim = (label == 0) & (border > 0)
    part = np.clip(1 - 2 * inner, 0, 1)
    wall = np.where(wall > WALL_HU, part * wall + (1 - part) * level, level)
    mixed[rim] += (border * (wall + noise - mixed))[rim]
    return mixed


def _blur_within(volume: np.ndarray, mask: np.ndarray, sigma_mm: float, scale: tuple) -> np.ndarray:
    """Return a volume blurred by what lies in the mask alone."""
    weight = _blur(mask.astype(np.float32), sigma_mm, scale)
    return _blur(volume * mask, sigma_mm, scale) / np.maximum(weight, 1e-3)


def _bronchograms(rng: np.random.Generator, new, vessel, solid, scale: tuple) -> np.ndarray:
    """Return the HU with air-filled bronchi in dense lung: each runs beside a vessel of the host."""
    thick = np.clip(2.2 * _blur(vessel, 1.2, scale) - 0.7, 0, 1)
    angle = rng.uniform(0, 2 * np.pi)
    beside_mm = rng.uniform(1.5, 3.5)
    shift = (beside_mm * np.cos(angle) * scale[0], beside_mm * np.sin(angle) * scale[1], 0)
    tube = ndimage.shift(thick, shift, order=1, mode="nearest") * solid * rng.uniform(0.4, 1.0)
    return new + tube * (-900 - new)
