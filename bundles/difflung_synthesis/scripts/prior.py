"""What is known of a voxel from its tissue alone: the flow of independent voxels with the tissue's HU, in closed form.

The HU of a tissue are a mixture of ``COMPONENTS`` normal distributions of equal weight, one per slice of its sorted
values, so that two peaks (walls and air of a honeycomb) stay two; what is known of the patient changes the weights.
Legend of shapes: B samples, C channels of the network's data, H, W[, D] voxels, M components.
"""

import torch

COMPONENTS = 16
SUBSTEPS = 4  # of a long step; each costs two evaluations of the mixture


def fit_mixture(values: torch.Tensor, smallest_deviation: float) -> torch.Tensor:
    """Return means and deviations of slices of equally many sorted values, shape (2, C, M).

    Args:
        values: of one tissue, shape (C, N), N at least M.
        smallest_deviation: of a component.
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


def velocity(
    x_t: torch.Tensor, t: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """Return E[eps - x_0 | x_t] for x_t = (1 - t) x_0 + t eps where every voxel is independent.

    For a component N(m, d^2), x_t has variance s^2 = (1 - t)^2 d^2 + t^2 and the velocity is
    (t - (1 - t) d^2) / s^2 (x_t - (1 - t) m) - m; components count by their weight and by how likely they make x_t.

    Args:
        x_t: noisy image, shape (B, C, H, W[, D]).
        t: times, shape (B, 1, 1, 1[, 1]).
        means: of the components at each voxel, shape (B, C, M, H, W[, D]).
        deviations: likewise.
        logits: logarithms of the weights of the components, up to a constant, likewise.

    Returns:
        The shape of ``x_t``.
    """
    t = t.unsqueeze(2)
    variance = (1 - t) ** 2 * deviations**2 + t**2
    centred = x_t.unsqueeze(2) - (1 - t) * means
    weight = torch.softmax(logits - 0.5 * (centred**2 / variance + variance.log()), dim=2)
    return (weight * ((t - (1 - t) * deviations**2) / variance * centred - means)).sum(dim=2)


def mean_velocity(x_t: torch.Tensor, t: torch.Tensor, interval: torch.Tensor, *mixture: torch.Tensor) -> torch.Tensor:
    """Return (x_t - x_r) / (t - r) for the step of :func:`velocity` from t to r = t - interval, by Heun's method.

    Args:
        x_t: as in :func:`velocity`, like the following.
        t: times.
        interval: length of the step, shape of ``t``; the velocity at t itself where 0.
        mixture: means, deviations and logits of the components.
    """
    x, step = x_t, interval.clamp(min=1e-3) / SUBSTEPS
    for index in range(SUBSTEPS):
        time = t - index * step
        slope = velocity(x, time, *mixture)
        after = velocity(x - step * slope, (time - step).clamp(min=0), *mixture)
        x = x - step / 2 * (slope + after)
    return (x_t - x) / (step * SUBSTEPS)
