"""Lesions of the training patients: found in their tissue maps, measured, and deformed to be moved.

Everything here works in voxels of canonical (RAS) orientation, so that left, front and top mean the same in every CT.
"""

import zlib

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from tools.data.datalist import Case
from tools.maps.shape import measures
from tools.quantify.extents import pleura_distance
from tools.tissues import pathological_tissues, tissue_labels

MIN_LESION_VOXELS = 24
LEAST_PART = 0.05  # of a lesion of several tissues


class Lesion:
    """One connected lesion of a training patient; its arrays are kept compressed, since a bank holds thousands.

    ``mask`` has shape (w, h, d), ``hu`` (int16, or None) too: it is kept in the mask and next to it within the slice.
    ``spacing`` is in mm, ``measures`` from ``shape.measures``. One that was found with what touches it has ``values``
    (uint8, the shape of ``mask``, the tissue of each of its voxels), else None; ``tissue`` is what most of it is.
    """

    def __init__(
        self,
        case: str,
        tissue: str,
        mask: np.ndarray,
        hu: np.ndarray | None,
        spacing: np.ndarray,
        measures: dict[str, float],
        values: np.ndarray | None = None,
    ) -> None:
        self.case, self.tissue, self.spacing, self.measures, self.shape = case, tissue, spacing, measures, mask.shape
        self._mask = zlib.compress(mask.tobytes(), 1)
        near = None if hu is None else ndimage.binary_dilation(mask, np.ones((3, 3, 1)))
        self._values = None if values is None else zlib.compress(values.astype(np.uint8).tobytes(), 1)
        self._hu = None if hu is None else zlib.compress(np.where(near, hu, 0).astype(np.int16).tobytes(), 1)

    @property
    def mask(self) -> np.ndarray:
        return np.frombuffer(zlib.decompress(self._mask), bool).reshape(self.shape)

    @property
    def values(self) -> np.ndarray | None:
        return (
            None if self._values is None else np.frombuffer(zlib.decompress(self._values), np.uint8).reshape(self.shape)
        )

    @property
    def hu(self) -> np.ndarray | None:
        return None if self._hu is None else np.frombuffer(zlib.decompress(self._hu), np.int16).reshape(self.shape)


def lung_height(lung: np.ndarray) -> np.ndarray:
    """Return each slice's height in the lung, 0 at the lowest and 1 at the highest, 0.5 in a single slice."""
    occupied = np.flatnonzero(lung.any(axis=(0, 1)))
    if len(occupied) < 2:
        return np.full(lung.shape[2], 0.5)
    return (np.arange(lung.shape[2]) - occupied[0]) / (occupied[-1] - occupied[0])


def find_lesions(
    case: str,
    label: np.ndarray,
    hu: np.ndarray | None,
    spacing: np.ndarray,
    tissues: dict[str, int],
    depth_mm: np.ndarray | None = None,
    context: bool = False,
) -> list[Lesion]:
    """Return the connected lesions of a CT in canonical orientation.

    ``label``, ``hu`` (None if they shall carry none) and ``depth_mm`` (to the pleura, if known already) have the shape
    (W, H, D), ``spacing`` is in mm; ``tissues`` gives the pathological ones' values. With ``context`` a lesion is all
    that touches, of whatever tissue: halos and mixtures stay together.
    """
    depth = pleura_distance(label > 0, spacing) if depth_mm is None else depth_mm
    height = lung_height(label > 0)
    lesions = []
    names = {value: name for name, value in tissues.items()}
    for tissue, value in {"": 0}.items() if context else tissues.items():
        parts, _ = ndimage.label(np.isin(label, list(names)) if context else label == value)
        for index, box in enumerate(ndimage.find_objects(parts), start=1):
            mask = parts[box] == index
            if mask.sum() < MIN_LESION_VOXELS:
                continue
            crop = None if hu is None else hu[box].round().astype(np.int16)
            measured = measures(mask, depth[box], height[box[2]], spacing)
            values = np.where(mask, label[box], 0) if context else None
            main = names[int(np.bincount(values[mask]).argmax())] if context else tissue
            lesions.append(Lesion(case, main, mask, crop, spacing, measured, values))
    return lesions


def lesion_bank(
    training: list[Case], with_hu: bool = False, context: bool = False
) -> tuple[dict[str, list[Lesion]], dict[str, list[float]]]:
    """Return the lesions per tissue, and the volume in ml per tissue and case that has it (empty if none).

    With ``context`` a lesion stands under each tissue that a part of it (``LEAST_PART``) is.
    """
    labels = tissue_labels()
    tissues = {tissue: labels[tissue] for tissue in pathological_tissues()}
    bank: dict[str, list[Lesion]] = {}
    volumes: dict[str, list[float]] = {tissue: [] for tissue in tissues}
    for case in tqdm(training, desc="collecting lesions", unit="case", disable=None):
        label, hu, spacing = case.volumes()
        for lesion in find_lesions(case.name, label, hu if with_hu else None, spacing, tissues, context=context):
            for tissue in _tissues_of(lesion, tissues):
                bank.setdefault(tissue, []).append(lesion)
        for tissue, value in tissues.items():
            voxels = int((label == value).sum())
            if voxels:
                volumes[tissue].append(voxels * float(np.prod(spacing)) / 1000)
    return bank, volumes


def _tissues_of(lesion: Lesion, tissues: dict[str, int]) -> list[str]:
    """Return the tissues that a lesion holds enough of."""
    if lesion.values is None:
        return [lesion.tissue]
    counts = np.bincount(lesion.values.ravel(), minlength=256)
    return [name for name, value in tissues.items() if counts[value] >= LEAST_PART * counts[1:].sum()]
