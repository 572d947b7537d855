"""The tissue map as the synthesizer sees it."""

from collections.abc import Mapping

import torch
from monai.data import MetaTensor

UNKNOWN = -1  # a voxel whose tissue is not told, unlike background, which is told to be no lung
DENSITY_GAIN = 4.0  # a tissue's mean density varies less than its voxels do


def tissue_values(labels: Mapping[str, int]) -> list[int]:
    """Return the label values of the tissues, background left out, in the order of the condition channels.

    Args:
        labels: Label values by tissue name, as ``labels`` in the config; background is 0.

    Example:
        >>> tissue_values({"background": 0, "healthy": 1, "emphysema": 4})
        [1, 4]
    """
    return sorted(value for value in labels.values() if value != 0)


def condition_channels(tissue_map: torch.Tensor, labels: Mapping[str, int]) -> torch.Tensor:
    """Turn a tissue map into condition channels: one per tissue, then one for UNKNOWN; background is zero in all.

    Args:
        tissue_map: Label values or UNKNOWN, shape (B, 1, H, W[, D]).
        labels: Label values by tissue name.

    Returns:
        Zeros and ones, float32, shape (B, number of tissues + 1, H, W[, D]).

    Raises:
        ValueError: If the map holds a value that ``labels`` does not name.

    Example:
        >>> condition_channels(torch.tensor([[[[0, 1, UNKNOWN]]]]), {"background": 0, "healthy": 1})[0, :, 0].tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    values = torch.as_tensor([*tissue_values(labels), UNKNOWN], device=tissue_map.device)
    channels = tissue_map == values.view(1, -1, *[1] * (tissue_map.ndim - 2))
    unnamed = ~(channels.any(dim=1, keepdim=True) | (tissue_map == 0))
    if unnamed.any():
        named = ", ".join(f"{name}={value}" for name, value in labels.items())
        raise ValueError(f"tissue map holds label {tissue_map[unnamed][0].item():g}, but labels name only {named}")
    return channels.float()


def density_channels(tissue_map: torch.Tensor, density: torch.Tensor, labels: Mapping[str, int]) -> torch.Tensor:
    """Return two channels: the mean density wanted of the tissue at each voxel, and where one is wanted.

    Args:
        tissue_map: Label values, shape (B, 1, H, W[, D]).
        density: Mean intensity per tissue in [-1, 1], NaN where it is not told, shape (B, tissues).
        labels: Label values by tissue name.

    Returns:
        Shape (B, 2, H, W[, D]); zeros where nothing is told.
    """
    channels = torch.zeros(len(tissue_map), 2, *tissue_map.shape[2:], device=tissue_map.device)
    for index, value in enumerate(tissue_values(labels)):
        wanted = density[:, index].view(-1, *[1] * (tissue_map.ndim - 2)).to(tissue_map.device)
        where = (tissue_map[:, 0] == value) & ~wanted.isnan()
        channels[:, 0] = torch.where(where, DENSITY_GAIN * wanted, channels[:, 0])
        channels[:, 1] = torch.where(where, 1.0, channels[:, 1])
    return channels


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor without MONAI's metadata, which arithmetic would carry along at a cost."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
