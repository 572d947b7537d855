"""Rectified flow inside a region: training pairs, loss, and the sampler (Liu et al., ICLR 2023, arXiv 2209.03003).

Noise lives only inside the region M: x_t = M ((1 - t) x_0 + t eps) + (1 - M) x_0, so the network always sees the real
CT around M. Legend of shapes: B samples, H and W voxels; images lie in [-1, 1], t in [0, 1] with t = 1 pure noise.
"""

from collections.abc import Callable, Mapping

import torch
from monai.data import MetaTensor
from monai.engines import PrepareBatch
from monai.inferers import Inferer

from .ablation import ClassBalancedMaskAblation
from .condition import condition_channels, tissue_values


def interpolate(x_0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Return x_t = M ((1 - t) x_0 + t eps) + (1 - M) x_0.

    Args:
        x_0: clean images, shape (B, 1, H, W).
        noise: eps, the same shape.
        t: shape (B,).
        region: M, zeros and ones, shape (B, 1, H, W).
    """
    t = t.view(-1, *[1] * (x_0.ndim - 1))
    return torch.where(region > 0, (1 - t) * x_0 + t * noise, x_0)


def euler(velocity: Callable[[torch.Tensor, float], torch.Tensor], x_1: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Integrate dx/dt = v(x, t) from t = 1 (noise) to t = 0 (image) in equal Euler steps.

    Args:
        velocity: v(x, t).
        x_1: where to start, any shape.
        num_steps: evaluations of ``velocity``.

    Returns:
        x_0, the shape of ``x_1``.

    Raises:
        ValueError: if ``num_steps`` is below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps}")
    x = x_1
    for step in range(num_steps):
        x = x - velocity(x, 1 - step / num_steps) / num_steps
    return x


def stratified_times(samples: int) -> torch.Tensor:
    """Return one t per sample, uniform on [0, 1] each and spread evenly over the batch, shape (samples,)."""
    return (torch.randperm(samples) + torch.rand(samples)) / samples


def draw_region(tissue_map: torch.Tensor, labels: Mapping[str, int], whole_probability: float) -> torch.Tensor:
    """Draw the region to synthesize per sample: the voxels of a random non-empty set of its tissues, or all lung.

    Args:
        tissue_map: label values, shape (B, 1, H, W).
        labels: tissue name to value.
        whole_probability: probability that the region is the whole lung of the patch.

    Returns:
        M as float zeros and ones, shape (B, 1, H, W); all zero where a patch holds no lung.
    """
    region = torch.zeros(tissue_map.shape, device=tissue_map.device)
    for sample, tissues in zip(region, tissue_map):
        present = [value for value in tissue_values(labels) if (tissues == value).any()]
        if not present:
            continue
        if torch.rand(()) < whole_probability:
            chosen = present
        else:
            one = present[int(torch.randint(len(present), ()))]
            chosen = [value for value in present if value == one or torch.rand(()) < 0.25]
        sample[torch.isin(tissues, torch.as_tensor(chosen, device=tissues.device))] = 1
    return region


class FlowPrepareBatch(PrepareBatch):
    """Make the training pair of the flow from a batch of patches and tissue maps.

    Args:
        labels: tissue name to value.
        ablation: hides tissues from the condition.
        whole_probability: see :func:`draw_region`.
        tissue_weights: tissue name to weight in the loss; 1 for tissues not named.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        ablation: ClassBalancedMaskAblation,
        whole_probability: float = 0.2,
        tissue_weights: Mapping[str, float] | None = None,
    ) -> None:
        unknown = set(tissue_weights or {}) - set(labels)
        if unknown:
            raise ValueError(f"tissue_weights name {sorted(unknown)}, but labels name only {', '.join(labels)}")
        self.labels, self.ablation, self.whole_probability = labels, ablation, whole_probability
        self.weights = {labels[name]: weight for name, weight in (tissue_weights or {}).items()}

    def __call__(self, batchdata, device=None, non_blocking: bool = False, **kwargs):
        """Return (x_0, target, (), inferer arguments).

        The target stacks the velocity eps - x_0 and the loss weight of each voxel (0 outside the region), shape
        (B, 2, H, W).
        """
        tissue_map = plain(batchdata["label"])  # drawn on the CPU: a draw per sample would halt a GPU each time
        region = draw_region(tissue_map, self.labels, self.whole_probability)
        condition = condition_channels(self.ablation(tissue_map), self.labels)
        weight = region.clone()
        for value, factor in self.weights.items():
            weight[tissue_map == value] *= factor
        drawn = (plain(batchdata["image"]), region, condition, weight, stratified_times(len(tissue_map)))
        x_0, region, condition, weight, t = (tensor.to(device, non_blocking=non_blocking) for tensor in drawn)
        noise = torch.randn_like(x_0)
        target = torch.cat([noise - x_0, weight], dim=1)
        return x_0, target, (), {"noise": noise, "t": t, "region": region, "condition": condition}


class FlowInferer(Inferer):
    """Training inferer: one evaluation of the network at x_t."""

    def __call__(self, inputs, network, noise, t, region, condition):
        """Return the velocity, shape (B, 1, H, W); arguments as :class:`FlowPrepareBatch` makes them."""
        return network(torch.cat([interpolate(inputs, noise, t, region), region, condition], dim=1), t)


class RegionMSELoss(torch.nn.Module):
    """Mean squared error of the velocity over the region, weighted per voxel."""

    def forward(self, velocity: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return sum w (v - v*)^2 / sum w.

        Args:
            velocity: v, shape (B, 1, H, W).
            target: v* and w stacked, shape (B, 2, H, W).
        """
        wanted, weight = target.split(1, dim=1)
        return (weight * (velocity - wanted) ** 2).sum() / weight.sum().clamp(min=1)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor without MONAI's metadata, which arithmetic would carry along at a cost."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
