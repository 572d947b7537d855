"""The tissue map as the synthesizer sees it."""

from collections.abc import Mapping

import torch

UNKNOWN = -1  # a voxel whose tissue is not told, unlike background, which is told to be no lung


def tissue_values(labels: Mapping[str, int]) -> list[int]:
    """Return the label values of the tissues, background left out, in the order of the condition channels.

    Args:
        labels: tissue name to value, as ``labels`` in the config; background is 0.

    Example:
        >>> tissue_values({"background": 0, "healthy": 1, "emphysema": 4})
        [1, 4]
    """
    return sorted(value for value in labels.values() if value != 0)


def condition_channels(tissue_map: torch.Tensor, labels: Mapping[str, int]) -> torch.Tensor:
    """Turn a tissue map into condition channels: one per tissue, then one for UNKNOWN; background is zero in all.

    Args:
        tissue_map: label values or UNKNOWN, shape (B, 1, H, W[, D]).
        labels: tissue name to value.

    Returns:
        Zeros and ones, float32, shape (B, number of tissues + 1, H, W[, D]).

    Raises:
        ValueError: if the map holds a value that ``labels`` does not name.

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
