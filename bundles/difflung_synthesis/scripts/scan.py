"""What a CT tells of its scan: how sharp and noisy it is, as its kernel decides, and the size of its voxels."""

import math
from collections.abc import Hashable, Mapping

import numpy
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from .tissue_channels import plain

TYPICAL_HU = 50.0  # between the soft and the lung kernels
TYPICAL_MM = 0.8  # of a voxel in the plane
ENTRIES = 4  # of a vector of attributes: sharpness known, sharpness, voxel size known, voxel size
SLICES = 32  # that are looked at, at most
FEWEST_VOXELS = 100
TOLERANCE = 1.1
UNKNOWN_SHARE = 0.1  # of the training samples, so that painting works where it cannot be measured


def sharpness_hu(image: torch.Tensor, lung: torch.Tensor) -> float:
    """Return the median of |x_(i-1) - 2 x_i + x_(i+1)| along both in-plane axes of the lung, NaN if there is no lung.

    Args:
        image: CT in HU, shape (W, H, D).
        lung: Where the lung is, the same shape.
    """
    indices = lung.any(dim=0).any(dim=0).nonzero().flatten()
    indices = indices[torch.linspace(0, max(len(indices) - 1, 0), min(SLICES, len(indices))).long()]
    image, lung = image[..., indices].float(), lung[..., indices]
    found = [image.new_zeros(0)]
    for axis in (0, 1):
        if lung.shape[axis] > 2:
            found.append(image.diff(2, dim=axis).abs()[lung.unfold(axis, 3, 1).all(dim=-1)])
    values = torch.cat(found)
    return values.median().item() if len(values) >= FEWEST_VOXELS else math.nan


class MeasureScand(MapTransform):
    """Add ``scan`` to an item: log2 of the sharpness of its CT over ``TYPICAL_HU`` and of its voxels over TYPICAL_MM.

    The sharpness is NaN where there is no lung, the voxel size, of the first axis, where the CT has no affine.

    Args:
        keys: Key of the CT in HU, at the voxel size of the network, shape (1, W, H, D).
        lung_key: Key of a map of the same shape, 0 outside the lung.
    """

    def __init__(self, keys: KeysCollection, lung_key: str) -> None:
        super().__init__(keys)
        self.lung_key = lung_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        """Return the item with ``scan``, float32, shape (2,)."""
        item = dict(data)
        for key in self.key_iterator(item):
            sharpness = sharpness_hu(plain(item[key])[0], plain(item[self.lung_key])[0] != 0)
            affine = getattr(item[key], "affine", None)
            voxel_mm = math.nan if affine is None else float(affine[:3, 0].norm())
            item["scan"] = numpy.float32(
                [math.log2(max(sharpness, 1.0) / TYPICAL_HU), math.log2(voxel_mm / TYPICAL_MM)]
            )
        return item


def append_scan(attributes: torch.Tensor, scan) -> torch.Tensor:
    """Return encoded attributes, shape (B, size), with ``ENTRIES`` more: for each of two, known (1) or not (0), and it.

    Args:
        attributes: Attributes as :class:`scripts.attributes.Attributes` encodes them, shape (B, size).
        scan: Sharpness and voxel size of each sample as :class:`MeasureScand` gives them, shape (B, 2), NaN where
            unknown; None if they are unknown of all.
    """
    value = torch.full((len(attributes), 2), torch.nan) if scan is None else torch.as_tensor(scan).float().view(-1, 2)
    known = ~value.isnan()
    told = torch.stack([known.float(), value.nan_to_num()], dim=2).flatten(1)
    return torch.cat([attributes, told.to(attributes.device)], dim=1)


def withhold_scan(attributes: torch.Tensor) -> torch.Tensor:
    """Return what :func:`append_scan` gave; each of its two is made unknown in ``UNKNOWN_SHARE`` of the samples."""
    kept = (torch.rand(len(attributes), ENTRIES // 2) >= UNKNOWN_SHARE).float().repeat_interleave(2, dim=1)
    return torch.cat([attributes[:, :-ENTRIES], attributes[:, -ENTRIES:] * kept.to(attributes.device)], dim=1)


def voxel_mm(vector: torch.Tensor) -> float:
    """Return the voxel size, mm, that a vector as :func:`append_scan` makes it tells, shape (entries,)."""
    return TYPICAL_MM * 2 ** float(vector[-1])


def check_voxel_mm(vector: torch.Tensor, trained_mm: torch.Tensor) -> None:
    """Check that a CT's voxels are of a size that the network has seen, up to a tenth.

    Args:
        vector: Attributes as :func:`append_scan` gives them, shape (entries,); nothing is checked if it tells no size.
        trained_mm: Smallest and largest size of the training CTs, shape (2,); zero if that is not known.

    Raises:
        ValueError: If they are of another size: the texture would be too coarse or too fine.
    """
    low, high = trained_mm.tolist()
    if high > 0 and vector[-2] and not low / TOLERANCE <= voxel_mm(vector) <= high * TOLERANCE:
        near = low if voxel_mm(vector) < low else high
        raise ValueError(
            f"the CT's voxels are {voxel_mm(vector):.2f} mm wide, but the weights were trained at {low:.2f} to "
            f"{high:.2f} mm and would paint a texture of the wrong size; set spacing_mm to [{near:.2f}, {near:.2f}, -1]"
        )
