"""What is known of a voxel from its tissue alone: the flow of independent voxels with the tissue's HU, in closed form.

The HU of a tissue are a mixture of ``COMPONENTS`` normal distributions of equal weight, one per slice of its sorted
values, so that two peaks (walls and air of a honeycomb) stay two; what is known of the patient changes the weights.
UNKNOWN is a mixture of the tissues, each of them in a few components: :func:`merge`.
Legend of shapes: B samples, C channels of the network's data, H, W[, D] voxels, M components.
"""

import torch
from monai.networks.layers import gaussian_1d, separable_filtering

COMPONENTS = 16
NEVER = -1e4  # logit of a component without weight
SUBSTEPS = 4  # of a long step; each costs two evaluations of the mixture


def fit_mixture(values: torch.Tensor, smallest_deviation: float) -> torch.Tensor:
    """Return means and deviations of slices of equally many sorted values, shape (2, C, M).

    Args:
        values: Values of one tissue, shape (C, N), N at least M.
        smallest_deviation: Smallest deviation of a component.
    """
    slices = values.sort(dim=1).values.tensor_split(COMPONENTS, dim=1)
    means = torch.stack([part.mean(dim=1) for part in slices], dim=1)
    deviations = torch.stack([part.std(dim=1, correction=0) for part in slices], dim=1)
    return torch.stack([means, deviations.clamp(min=smallest_deviation)])


def log_density(values: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the density of normal distributions, up to a constant; all shapes broadcast."""
    return -0.5 * ((values - means) / deviations) ** 2 - deviations.log()


def moments(means: torch.Tensor, deviations: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of mixtures of components along dimension 2, whose weights are softmax(logits)."""
    weights = torch.softmax(logits, dim=2)
    mean = (weights * means).sum(dim=2)
    return mean, ((weights * (deviations**2 + means**2)).sum(dim=2) - mean**2).clamp(min=1e-6).sqrt()


def gaussian(sigma: float) -> torch.Tensor:
    """Return the kernel of a Gaussian of ``sigma`` voxels, shape (taps,)."""
    return gaussian_1d(torch.tensor(sigma), truncated=2.5, approx="sampled", normalize=True)


def blur(maps: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Return maps blurred in-plane by a kernel as :func:`gaussian` gives it, shape (B, K, H, W[, D]); zero lies around.

    The kernel lies on the device of the maps, or a GPU would wait for it.
    """
    flat = maps if maps.ndim == 4 else maps.movedim(-1, 1).flatten(0, 1)  # slices of a block are a batch
    single = flat.flatten(0, 1).unsqueeze(1)  # of one channel the filter is three times as fast as of many
    blurred = separable_filtering(single, [kernel, kernel]).view(flat.shape)
    return blurred if maps.ndim == 4 else blurred.unflatten(0, (-1, maps.shape[-1])).movedim(1, -1)


def soften(shares: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Return the shares of the tissues with soft borders between tissues that are told; each voxel's sum stays.

    Component j of a mixture is the j-th slice of sorted values. So a voxel between two tissues gets, slice by slice,
    values between theirs: its HU change gradually, as a scanner's blur makes them, and do not jump between the two.

    Args:
        shares: Shares of the tissues, UNKNOWN last, shape (B, tissues + 1, H, W[, D]).
        kernel: Kernel of the blur in-plane, see :func:`gaussian`.
    """
    told, unknown = shares[:, :-1], shares[:, -1:]
    soft, total = blur(told, kernel), told.sum(dim=1, keepdim=True)
    soft = soft / soft.sum(dim=1, keepdim=True).clamp(min=1e-6) * total
    return torch.cat([torch.where(total > 0, soft, told), unknown], dim=1)


def components_per_tissue(tissues: int) -> int:
    """Return how many components each tissue has in UNKNOWN: ``COMPONENTS`` shared among them."""
    return max(1, COMPONENTS // tissues)


def merge(
    means: torch.Tensor, deviations: torch.Tensor, logits: torch.Tensor, share_logits: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the mixture of UNKNOWN: neighbouring components of each tissue made one, weighted by the tissue's share.

    Args:
        means: Means of the components of each tissue, shape (C, tissues, M).
        deviations: Deviations of the components, the same shape.
        logits: Logits of their weights, shape (B, C, tissues, M).
        share_logits: Logits of the shares of the tissues, shape (B, tissues).

    Returns:
        Means, deviations and logits, shape (B, C, M) each, the components of a tissue side by side; those that are too
        many have no weight.
    """
    weights, merged = torch.softmax(logits, dim=3), []
    parts = (part.tensor_split(components_per_tissue(means.shape[1]), dim=-1) for part in (weights, means, deviations))
    for weight, mean, deviation in zip(*parts):
        total = weight.sum(dim=3)
        centre = (weight * mean).sum(dim=3) / total
        variance = (weight * (deviation**2 + (mean - centre.unsqueeze(3)) ** 2)).sum(dim=3) / total
        merged.append((centre, variance.sqrt(), total.log() + share_logits.log_softmax(dim=1).unsqueeze(1)))
    spare = COMPONENTS - len(merged) * means.shape[1]
    return tuple(
        torch.nn.functional.pad(torch.stack(values, dim=3).flatten(2), (0, spare), value=filling)
        for values, filling in zip(zip(*merged), (0.0, 1.0, NEVER))
    )


def log_weights(
    x_t: torch.Tensor, t: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """Return the logarithms of the weights that the components have once x_t is seen, up to a constant.

    Arguments and shapes as in :func:`velocity`.
    """
    centred, variance = deviation_of(x_t, t, means, deviations)
    return logits - 0.5 * (centred**2 / variance + variance.log())


def deviation_of(
    x_t: torch.Tensor, t: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far x_t lies from the mean that each component has at t, and the variance there."""
    t = t.unsqueeze(2)
    return x_t.unsqueeze(2) - (1 - t) * means, (1 - t) ** 2 * deviations**2 + t**2


def velocity(
    x_t: torch.Tensor, t: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """Return E[eps - x_0 | x_t] for x_t = (1 - t) x_0 + t eps where every voxel is independent.

    For a component N(m, d^2), x_t has variance s^2 = (1 - t)^2 d^2 + t^2 and the velocity is
    (t - (1 - t) d^2) / s^2 (x_t - (1 - t) m) - m; components count by their weight and by how likely they make x_t.

    Args:
        x_t: Noisy image, shape (B, C, H, W[, D]).
        t: Times, shape (B, 1, 1, 1[, 1]).
        means: Means of the components at each voxel, shape (B, C, M, H, W[, D]).
        deviations: Deviations of the components, the same shape.
        logits: Logarithms of the weights of the components, up to a constant, the same shape.

    Returns:
        The shape of ``x_t``.
    """
    centred, variance = deviation_of(x_t, t, means, deviations)
    weight = torch.softmax(logits - 0.5 * (centred**2 / variance + variance.log()), dim=2)
    t = t.unsqueeze(2)
    return (weight * ((t - (1 - t) * deviations**2) / variance * centred - means)).sum(dim=2)


def mean_velocity(x_t: torch.Tensor, t: torch.Tensor, interval: torch.Tensor, *mixture: torch.Tensor) -> torch.Tensor:
    """Return (x_t - x_r) / (t - r) for the step of :func:`velocity` from t to r = t - interval, by Heun's method.

    Args:
        x_t: Noisy image, as in :func:`velocity`, like the following.
        t: Times.
        interval: Length of the step, shape of ``t``; the velocity at t itself where 0.
        mixture: Means, deviations and logits of the components.
    """
    x, step = x_t, interval.clamp(min=1e-3) / SUBSTEPS
    for index in range(SUBSTEPS):
        time = t - index * step
        slope = velocity(x, time, *mixture)
        after = velocity(x - step * slope, (time - step).clamp(min=0), *mixture)
        x = x - step / 2 * (slope + after)
    return (x_t - x) / (step * SUBSTEPS)
