"""A target map for one CT: so many ml of a tissue, in a place that is named in words."""

import numpy as np

from tools.io.files import InputError
from tools.maps.growth import LesionModel
from tools.maps.lesions import MIN_LESION_VOXELS
from tools.maps.placement import Receiver
from tools.maps.typical import typical_model
from tools.quantify.extents import PERIPHERY_MM, midline, regions
from tools.tissues import words

# Word to region of ``extents.regions``; at most one word of a group.
SIDES = {"left": "left", "right": "right"}
HEIGHTS = {"upper": "upper", "middle": "middle", "lower": "lower"}
DEPTHS = {"subpleural": "peripheral", "peripheral": "peripheral", "central": "central"}
GROUPS = (SIDES, HEIGHTS, DEPTHS)
FILLED_AT_MOST = 0.6  # of a place's healthy lung; lesions keep apart, so not all of it can be filled
LESIONS = 8  # a volume is divided into about so many at most
FAILURES = 12  # lesions without a place, each smaller than the one before
ENOUGH = 0.98  # of the volume asked for; what lacks is less than a lesion
LEFT_OUT = 254  # stands in the map, while lesions grow, where none may


def place_words(place: str | None) -> list[str]:
    """Return the words of a place.

    Raises:
        InputError: if a word is unknown, or two exclude each other.

    Example:
        >>> place_words("left lower"), place_words(None)
        (['left', 'lower'], [])
    """
    known = [word for group in GROUPS for word in group]
    found = (place or "").lower().replace(",", " ").split()
    for word in found:
        if word not in known:
            raise InputError(f"--place {place!r} holds {word!r}; a place is made of the words {', '.join(known)}")
    for group in GROUPS:
        own = [word for word in found if word in group]
        if len(own) > 1:
            raise InputError(f"--place {place!r} names {' and '.join(own)}; of {', '.join(group)} name one")
    return found


def where(hu: np.ndarray, lung: np.ndarray, spacing: np.ndarray, place: list[str]) -> np.ndarray:
    """Return the part of the lung that words name, bool, shape (W, H, D).

    Args:
        hu: CT in HU, canonical, shape (W, H, D).
        lung: Where lung is, the same shape, not empty.
        spacing: Voxel size in mm.
        place: Of :func:`place_words`; the whole lung if empty.
    """
    if not place:
        return lung
    named = {word: region for group in GROUPS for word, region in group.items()}
    parts = regions(lung, spacing, midline(hu, lung), PERIPHERY_MM)
    return np.logical_and.reduce([parts[named[word]] for word in place])


def draw_target(
    label: np.ndarray,
    allowed: np.ndarray,
    spacing: np.ndarray,
    labels: dict[str, int],
    tissue: str,
    volume_ml: float,
    rng: np.random.Generator,
    place: str = "the lungs",
) -> tuple[np.ndarray, list[float]]:
    """Grow lesions of one tissue in healthy lung until they have a volume together.

    Args:
        label: Tissue map of the CT, canonical, shape (W, H, D).
        allowed: Where lesions may lie, bool, the same shape.
        spacing: Voxel size in mm.
        labels: Tissue name to value.
        tissue: Name of the tissue to add.
        volume_ml: Volume wanted.
        rng: Source of randomness.
        place: What ``allowed`` is, for messages.

    Returns:
        The target map, and the volume of each lesion in ml.

    Raises:
        InputError: if the place has too little healthy lung, or the lesions found no place.
    """
    voxel_ml = float(np.prod(spacing)) / 1000
    free_ml = np.count_nonzero(allowed & (label == labels["healthy"])) * voxel_ml
    most_ml = FILLED_AT_MOST * free_ml
    asked = f"{volume_ml:g} ml of {words(tissue)}"
    if volume_ml > most_ml:
        raise InputError(
            f"{asked} do not fit: {place} has {free_ml:.0f} ml of healthy lung free, of which at most {most_ml:.0f} ml "
            "can be filled; ask for less or name a larger place"
        )
    least_ml = MIN_LESION_VOXELS * voxel_ml
    if volume_ml < least_ml:
        raise InputError(
            f"{asked} are less than {MIN_LESION_VOXELS} voxels of this CT, {least_ml:.2g} ml; ask for more"
        )
    receiver = Receiver(np.where(allowed | (label == 0), label, LEFT_OUT), None, spacing, labels["healthy"])
    receiver.room = np.count_nonzero(receiver.target == labels["healthy"])
    model, found = typical_model(tissue), []
    left_ml, largest_ml, failures = volume_ml, volume_ml, 0
    while left_ml > max((1 - ENOUGH) * volume_ml, least_ml) and failures < FAILURES:
        size_ml = min(_size_ml(model, left_ml, volume_ml, rng), largest_ml)
        voxels = model.grow(receiver, labels[tissue], rng, model.draw_of_volume(max(size_ml, least_ml), rng))
        if voxels:
            found.append(voxels * voxel_ml)
            left_ml -= voxels * voxel_ml
        else:
            failures += 1
            largest_ml = 0.7 * max(size_ml, least_ml)
    if sum(found) < 0.9 * volume_ml:
        raise InputError(
            f"{asked} found no room: {sum(found):.0f} ml could be placed in {place}, whose healthy lung ({free_ml:.0f} "
            "ml) is too narrow or broken up; ask for less, name a larger place or another --seed"
        )
    return np.where(receiver.target == labels[tissue], receiver.target, label), found


def _size_ml(model: LesionModel, left_ml: float, volume_ml: float, rng: np.random.Generator) -> float:
    """Return the volume of the next lesion: a typical one's, but no crumbs and no crumb left over."""
    size_ml = max(model.draw(rng)["volume_ml"], volume_ml / LESIONS)
    return left_ml if left_ml - size_ml < volume_ml / (2 * LESIONS) else size_ml
