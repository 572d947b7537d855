"""How sharp and noisy a CT is, which its reconstruction kernel decides: measured, since few files say it."""

import math
from collections.abc import Hashable, Mapping

import numpy
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from .tissue_channels import plain

TYPICAL_HU = 50.0  # between the soft and the lung kernels
SLICES = 32  # that are looked at, at most
FEWEST_VOXELS = 100
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


class MeasureSharpnessd(MapTransform):
    """Add ``sharpness`` to an item: log2 of the sharpness of its CT over ``TYPICAL_HU``, NaN where there is no lung.

    Args:
        keys: Key of the CT in HU, at the voxel size of the network, shape (1, W, H, D).
        lung_key: Key of a map of the same shape, 0 outside the lung.
    """

    def __init__(self, keys: KeysCollection, lung_key: str) -> None:
        super().__init__(keys)
        self.lung_key = lung_key

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        """Return the item with ``sharpness``, float32."""
        item = dict(data)
        for key in self.key_iterator(item):
            measured = sharpness_hu(plain(item[key])[0], plain(item[self.lung_key])[0] != 0)
            item["sharpness"] = numpy.float32(math.log2(max(measured, 1.0) / TYPICAL_HU))
        return item


def append_sharpness(attributes: torch.Tensor, sharpness) -> torch.Tensor:
    """Return encoded attributes, shape (B, size), with two more entries: known (1) or not (0), and the sharpness.

    Args:
        attributes: Attributes as :class:`scripts.attributes.Attributes` encodes them, shape (B, size).
        sharpness: Sharpness of each sample, NaN where unknown; None if it is unknown of all.
    """
    value = torch.full((len(attributes),), torch.nan) if sharpness is None else torch.as_tensor(sharpness).float()
    known = ~value.isnan()
    told = torch.stack([known.float(), value.nan_to_num()], dim=1)
    return torch.cat([attributes, told.to(attributes.device)], dim=1)
