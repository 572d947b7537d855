"""A CT that receives new lesions: moved ones are placed in plausible healthy lung, and all are entered into its map.

Everything here works in voxels of canonical (RAS) orientation, so that left, front and top mean the same in every CT.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from tools.maps.deform import deform, deform_values, draw_deformation, overlap
from tools.maps.lesions import MIN_LESION_VOXELS, Lesion, find_lesions, lung_height
from tools.quantify.extents import pleura_distance
from tools.tissues import pathological_tissues, tissue_labels

PLACES_TRIED = 12  # attempts to place one lesion before another is drawn
MIN_INSIDE = 0.6  # share of a placed lesion that must fall on healthy lung
MAX_HEALTHY_SHARE = 0.4  # of a CT's healthy lung that may be painted


@dataclass
class Receiver:
    """A CT that receives lesions, in canonical orientation."""

    label: np.ndarray  # tissue map, shape (W, H, D)
    hu: np.ndarray | None  # CT in HU, the same shape; None if nothing shall be pasted
    spacing: np.ndarray  # voxel size in mm
    healthy: int  # value of healthy tissue
    target: np.ndarray = field(init=False)  # the map with the placed lesions
    pasted: np.ndarray | None = field(init=False)  # the CT with the donors' HU in the placed lesions
    donors: list[dict] = field(default_factory=list)  # per transplanted lesion, the donor's case, tissue and voxels
    grown: list[dict] = field(default_factory=list)  # per procedural lesion, its tissue and voxels

    def __post_init__(self) -> None:
        self.target = self.label.copy()
        self.pasted = None if self.hu is None else self.hu.copy()
        self.depth_mm = pleura_distance(self.label > 0, self.spacing)
        self.height = lung_height(self.label > 0)
        self.room = int((self.label == self.healthy).sum() * MAX_HEALTHY_SHARE)
        self.box = (
            ndimage.find_objects((self.label > 0).astype(np.uint8))[0] if self.label.any() else (slice(0, 0),) * 3
        )
        self.free = np.count_nonzero(self.label == self.healthy, axis=2)  # healthy voxels per line, shape (W, H)
        self.added = np.zeros(max(tissue_labels().values()) + 1, int)  # voxels per label value

    def likely_places(
        self, height: float, depth_mm: float, rng: np.random.Generator, looked_at: int = 400, kept: int = 40
    ) -> np.ndarray:
        """Return the healthy voxels most like a height in the lung and a distance to the pleura in the slice.

        They are the ``kept`` most alike of ``looked_at`` drawn at random: indices, shape (kept, 3), or (0, 3) if none
        is healthy. The height is 0 at the base and 1 at the apex.
        """
        lines = self.free[self.box[:2]]
        last = np.cumsum(lines)  # in C order
        if not lines.any():
            return np.zeros((0, 3), int)
        ranks = rng.integers(last[-1], size=looked_at)
        line = np.searchsorted(last, ranks, side="right")
        x, y = np.unravel_index(line, lines.shape) + np.array([[axis.start] for axis in self.box[:2]])
        nth = ranks - (last - lines.ravel())[line]
        z = np.argmax(np.cumsum(self.target[x, y] == self.healthy, axis=1) > nth[:, None], axis=1)
        candidates = np.stack([x, y, z], axis=1)
        depth = self.depth_mm[tuple(candidates.T)]
        unlike = np.abs(self.height[candidates[:, 2]] - height) / 0.15 + np.abs(depth - depth_mm) / 8.0
        return candidates[np.argsort(unlike, kind="stable")[:kept]]

    def place(self, lesion: Lesion, value: int, rng: np.random.Generator) -> int:
        """Place one lesion, deformed, as a label value, where height and distance to the pleura are like the donor's.

        A lesion of several tissues keeps its own values.

        Returns the voxels painted, 0 if no place was found.
        """
        likely = self.likely_places(lesion.measures["height"], lesion.measures["depth_mm"], rng)
        for _ in range(PLACES_TRIED if len(likely) else 0):
            centre = likely[rng.integers(len(likely))]
            deformation = draw_deformation(lesion, self.spacing, rng)
            mask, hu, corner = deform(lesion, self.spacing, deformation, self.pasted is not None)
            inside, window = overlap(mask.shape, corner + centre, self.target.shape)
            free = mask[window] & (self.target[inside] == self.healthy)
            voxels = int(free.sum())
            if voxels < MIN_LESION_VOXELS or voxels < MIN_INSIDE * mask[window].sum() or voxels > self.room:
                continue
            own = value
            if lesion.values is not None:
                own = deform_values(lesion, self.spacing, deformation, mask)[window][free]
            self.enter(inside, free, own)
            if self.pasted is not None:
                self.pasted[inside][free] = hu[window][free]
            self.donors.append({"case": lesion.case, "tissue": lesion.tissue, "voxels": voxels})
            return voxels
        return 0

    def enter(self, inside: tuple[slice, slice, slice], mask: np.ndarray, own: int | np.ndarray) -> None:
        """Enter a lesion, bool and healthy so far, into a part of the map; ``own`` are its label values, or one."""
        self.target[inside][mask] = own
        voxels = np.count_nonzero(mask)
        self.free[inside[:2]] -= np.count_nonzero(mask, axis=2)
        self.added += np.bincount(np.broadcast_to(own, voxels), minlength=len(self.added))
        self.room -= voxels

    def new_ml(self, labels: dict[str, int]) -> dict[str, float]:
        """Return tissue to the volume in ml that was added to the map; tissues that were not are absent."""
        voxel_ml = float(np.prod(self.spacing)) / 1000
        return {name: self.added[value] * voxel_ml for name, value in labels.items() if self.added[value]}

    def new_lesions(self, name: str) -> list[Lesion]:
        """Return the lesions that the placed ones make together, where they touch as one; old lesions do not count."""
        labels = tissue_labels()
        new = np.where(self.target != self.label, self.target, np.where(self.label > 0, self.healthy, 0))
        tissues = {tissue: labels[tissue] for tissue in pathological_tissues()}
        return find_lesions(name, new, None, self.spacing, tissues, self.depth_mm)
