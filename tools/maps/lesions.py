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


class Lesion:
    """One connected lesion of a training patient; its arrays are kept compressed, since a bank holds thousands.

    ``mask`` has shape (w, h, d), ``hu`` (int16, or None) too: it is kept in the mask and next to it within the slice.
    ``spacing`` is in mm, ``measures`` from ``shape.measures``.
    """

    def __init__(
        self,
        case: str,
        tissue: str,
        mask: np.ndarray,
        hu: np.ndarray | None,
        spacing: np.ndarray,
        measures: dict[str, float],
    ) -> None:
        self.case, self.tissue, self.spacing, self.measures, self.shape = case, tissue, spacing, measures, mask.shape
        self._mask = zlib.compress(mask.tobytes(), 1)
        near = None if hu is None else ndimage.binary_dilation(mask, np.ones((3, 3, 1)))
        self._hu = None if hu is None else zlib.compress(np.where(near, hu, 0).astype(np.int16).tobytes(), 1)

    @property
    def mask(self) -> np.ndarray:
        return np.frombuffer(zlib.decompress(self._mask), bool).reshape(self.shape)

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
) -> list[Lesion]:
    """Return the connected lesions of a CT in canonical orientation.

    ``label``, ``hu`` (None if they shall carry none) and ``depth_mm`` (to the pleura, if known already) have the shape
    (W, H, D), ``spacing`` is in mm; ``tissues`` gives the pathological ones' values.
    """
    depth = pleura_distance(label > 0, spacing) if depth_mm is None else depth_mm
    height = lung_height(label > 0)
    lesions = []
    for tissue, value in tissues.items():
        parts, _ = ndimage.label(label == value)
        for index, box in enumerate(ndimage.find_objects(parts), start=1):
            mask = parts[box] == index
            if mask.sum() < MIN_LESION_VOXELS:
                continue
            crop = None if hu is None else hu[box].round().astype(np.int16)
            measured = measures(mask, depth[box], height[box[2]], spacing)
            lesions.append(Lesion(case, tissue, mask, crop, spacing, measured))
    return lesions


def lesion_bank(training: list[Case], with_hu: bool = False) -> tuple[dict[str, list[Lesion]], dict[str, list[float]]]:
    """Return the lesions per tissue, and the volume in ml per tissue and case that has it (empty if none)."""
    labels = tissue_labels()
    tissues = {tissue: labels[tissue] for tissue in pathological_tissues()}
    bank: dict[str, list[Lesion]] = {}
    volumes: dict[str, list[float]] = {tissue: [] for tissue in tissues}
    for case in tqdm(training, desc="collecting lesions", unit="case", disable=None):
        label, hu, spacing = case.volumes()
        for lesion in find_lesions(case.name, label, hu if with_hu else None, spacing, tissues):
            bank.setdefault(lesion.tissue, []).append(lesion)
        for tissue, value in tissues.items():
            voxels = int((label == value).sum())
            if voxels:
                volumes[tissue].append(voxels * float(np.prod(spacing)) / 1000)
    return bank, volumes
