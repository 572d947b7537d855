"""The way of labels back to a file's own voxels, axis by axis."""

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd, SpatialResample
from monai.utils import GridSampleMode, GridSamplePadMode, TraceKeys

SKEW = 1e-6  # voxels by which an axis may depend on another's place, per voxel
TIE = 1e-4  # voxels from the middle of two, within which a place is there: headers hold sizes in float32 or float64


class AxisResample(SpatialResample):
    """A SpatialResample whose way back by the nearest voxel takes rows, where no axis is turned.

    MONAI computes the place of each voxel for itself, which takes 1 GB and seconds for a CT. A place just between two
    voxels falls to either there, by the noise of float32; here to the upper one.
    """

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Return a volume, shape (C, W, H, D), on the grid it had before."""
        done = self.get_most_recent_transform(data)
        told = done[TraceKeys.EXTRA_INFO]
        wanted = np.asarray(told["src_affine"], np.float64)
        places = np.linalg.solve(np.asarray(data.affine, np.float64), wanted)  # from voxels there to voxels here
        scale = places[:3, :3].diagonal()
        by_rows = told["mode"] == GridSampleMode.NEAREST and told["padding_mode"] == GridSamplePadMode.BORDER
        if not by_rows or data.ndim != 4 or np.abs(places[:3, :3] - np.diag(scale)).max() > SKEW:
            return super().inverse(data)
        self.pop_transform(data)
        found = data.as_tensor()
        for axis, size in enumerate(done[TraceKeys.ORIG_SIZE], 1):
            rows = np.floor(scale[axis - 1] * np.arange(size) + places[axis - 1, 3] + 0.5 + TIE)
            rows = rows.clip(0, found.shape[axis] - 1)
            if size != found.shape[axis] or (rows != np.arange(size)).any():
                rows = torch.from_numpy(rows.astype(np.int64)).to(found.device)
                # of the last axis index_select is a hundred times as slow
                found = found[..., rows] if axis == 3 else found.index_select(axis, rows)
        affine = torch.from_numpy(wanted)
        return MetaTensor(found, meta=data.meta | {"affine": affine}, applied_operations=data.applied_operations)


class AxisSpacingd(Spacingd):
    """A Spacingd with :class:`AxisResample`; its way there is MONAI's."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.spacing_transform.sp_resample = AxisResample()
