"""What the network learns: rectified flow, few-step flow or DDPM noise, inside a region of the patch.

Noise lives only inside the region M: x_t = M ((1 - t) x_0 + t eps) + (1 - M) x_0, so the network always sees the real
CT around M. Legend of shapes: B samples, H, W[, D] voxels; images lie in [-1, 1] and are scaled or encoded before noise
of deviation 1 is added; t in [0, 1] with t = 1 pure noise.
"""

from collections.abc import Mapping

import torch
from monai.engines import PrepareBatch
from monai.inferers import Inferer

from .ablation import ClassBalancedMaskAblation
from .network import TissueDenoiser
from .region import grow
from .samplers import alpha_bars
from .scan import append_scan, withhold_scan
from .tissue_channels import UNKNOWN, condition_channels, density_channels, plain, tissue_values

DRAWN = ("weight", "t", "region", "condition", "attributes", "tissues")  # for a batch of patches


def stratified_times(samples: int) -> torch.Tensor:
    """Return one t per sample, uniform on [0, 1] each and spread evenly over the batch, shape (samples,)."""
    return (torch.randperm(samples) + torch.rand(samples)) / samples


def draw_region(tissue_map: torch.Tensor, labels: Mapping[str, int], whole_probability: float) -> torch.Tensor:
    """Draw the region to synthesize per sample: the voxels of a random non-empty set of its tissues, or all lung.

    Args:
        tissue_map: Label values or UNKNOWN, which counts as a tissue here, shape (B, 1, H, W[, D]).
        labels: Label values by tissue name.
        whole_probability: Probability that the region is the whole lung of the patch.

    Returns:
        M as float zeros and ones, the shape of the map; all zero where a patch holds no lung.
    """
    region = torch.zeros(tissue_map.shape, device=tissue_map.device)
    for sample, tissues in zip(region, tissue_map):
        present = [value for value in (*tissue_values(labels), UNKNOWN) if (tissues == value).any()]
        if not present:
            continue
        if torch.rand(()) < whole_probability:
            chosen = present
        else:
            one = present[int(torch.randint(len(present), ()))]
            chosen = [value for value in present if value == one or torch.rand(()) < 0.25]
        sample[torch.isin(tissues, torch.as_tensor(chosen, device=tissues.device))] = 1
    return region


def grow_at_random(region: torch.Tensor, tissue_map: torch.Tensor, most: int) -> torch.Tensor:
    """Return each sample's region grown in-plane, within the lung, by a random number of voxels from 0 to ``most``.

    ``region`` is zeros and ones, ``tissue_map`` 0 outside the lung, both of shape (B, 1, H, W[, D]).
    """
    grown = region.clone()
    flat = region.ndim == 4
    for sample, tissues in zip(grown, tissue_map):
        where, lung = ((part != 0).unsqueeze(-1) if flat else part != 0 for part in (sample, tissues))
        wider = grow(where, lung, int(torch.randint(most + 1, ())))
        sample.copy_(wider.squeeze(-1) if flat else wider)
    return grown


def measured_density(image: torch.Tensor, where: torch.Tensor, labels: Mapping[str, int]) -> torch.Tensor:
    """Return the mean intensity of each tissue of each sample, NaN where there is none, shape (B, tissues).

    Args:
        image: Patches of CT, shape (B, 1, H, W[, D]).
        where: Label values of the voxels that count, 0 elsewhere, the same shape.
        labels: Label values by tissue name.
    """
    dims = tuple(range(1, image.ndim))
    masks = [where == value for value in tissue_values(labels)]
    return torch.stack([(image * mask).sum(dims) / mask.sum(dims) for mask in masks], dim=1)


class TissuePrepareBatch(PrepareBatch):
    """Draw from a batch of patches what is to be synthesized and what the network is told about it.

    A tissue map with negated label values is that of a patch of which nothing is told.

    Args:
        labels: Label values by tissue name.
        ablation: Ablation that hides tissues from the condition.
        whole_probability: Probability of the whole lung, see :func:`draw_region`.
        tissue_weights: Weights in the loss by tissue name, where the tissue is told; 1 for tissues not named. Where it
            is not told a weight would make the network expect more of it than there is.
        region_margin: Most voxels by which the region is wider than the tissue drawn, see :func:`grow_at_random`.
            The density that is told is that of the tissue drawn alone.
        density_unknown: Probability that the density of a tissue is not told, per sample and tissue.
        attributes: How the attributes are encoded; None if the batch has none. ``scan`` of the batch, if it is
            there, follows them.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        ablation: ClassBalancedMaskAblation,
        whole_probability: float = 0.2,
        tissue_weights: Mapping[str, float] | None = None,
        density_unknown: float = 0.5,
        attributes=None,
        region_margin: int = 0,
    ) -> None:
        if region_margin < 0:
            raise ValueError(f"region_margin must be at least 0, not {region_margin}")
        self.region_margin = region_margin
        unknown = set(tissue_weights or {}) - set(labels)
        if unknown:
            raise ValueError(f"tissue_weights name {sorted(unknown)}, but labels name only {', '.join(labels)}")
        if not 0 <= density_unknown <= 1:
            raise ValueError(f"density_unknown must be a probability in [0, 1], not {density_unknown}")
        self.labels, self.ablation, self.whole_probability = labels, ablation, whole_probability
        self.weights = {labels[name]: weight for name, weight in (tissue_weights or {}).items()}
        self.density_unknown, self.attributes = density_unknown, attributes

    def __call__(self, batchdata, device=None, non_blocking: bool = False, **kwargs):
        """Return (x_0, weight, (), inferer arguments) on the device; :meth:`draw` comes first, if it has not been."""
        drawn = batchdata if DRAWN[0] in batchdata else self.draw(batchdata)
        x_0, weight, *given = (drawn[name].to(device, non_blocking=non_blocking) for name in ("image", *DRAWN))
        return x_0, weight, (), dict(zip(DRAWN[1:], given))

    def draw(self, batchdata: Mapping) -> dict:
        """Return the batch with its patches, shape (B, 1, H, W[, D]), and what is drawn for them, under ``DRAWN``.

        ``weight`` is each voxel's weight in the loss, 0 outside the region, the shape of the patches. Patches of one
        slice become two-dimensional. It is drawn on the CPU, by the loader's workers where there are some: a draw per
        sample would halt a GPU each time.
        """
        x_0, tissue_map = plain(batchdata["image"]), plain(batchdata["label"])
        if x_0.shape[-1] == 1:
            x_0, tissue_map = x_0.squeeze(-1), tissue_map.squeeze(-1)
        tissues, tissue_map = tissue_map.abs(), torch.where(tissue_map < 0, UNKNOWN, tissue_map)
        region = draw_region(tissue_map, self.labels, self.whole_probability)
        shown = self.ablation(tissue_map)
        density = measured_density(x_0, tissue_map * region, self.labels)
        density[torch.rand(density.shape) < self.density_unknown] = torch.nan
        told = density_channels(torch.where(shown >= 0, tissue_map * region, 0), density, self.labels)
        region = grow_at_random(region, tissue_map, self.region_margin) if self.region_margin else region
        condition = torch.cat([condition_channels(shown, self.labels), told], dim=1)
        attributes = torch.zeros(len(x_0), 0)
        if self.attributes is not None and self.attributes.size:
            attributes = self.attributes.drop(torch.as_tensor(batchdata["attributes"]).float())
        attributes = withhold_scan(append_scan(attributes, batchdata.get("scan")))
        weight = region.clone()
        for value, factor in self.weights.items():
            weight[shown == value] *= factor
        drawn = (weight, stratified_times(len(x_0)), region, condition, attributes)
        of_tissues = condition_channels(tissues, self.labels)[:, :-1]
        return dict(batchdata) | {"image": x_0} | dict(zip(DRAWN, (*drawn, of_tissues)))


class FlowObjective(Inferer):
    """Training inferer: the error of the velocity, v - (eps - x_0) (Liu et al., ICLR 2023, arXiv 2209.03003).

    Args:
        tissue_loss: Weight of the cross-entropy of the tissue where none is told, beside the squared error; 0 to leave
            it out. It needs a network with a tissue prior.
    """

    def __init__(self, tissue_loss: float = 0.0) -> None:
        if tissue_loss < 0:
            raise ValueError(f"tissue_loss must be at least 0, not {tissue_loss}")
        self.tissue_loss = tissue_loss

    def __call__(self, inputs, network, t, region, condition, attributes=None, tissues=None):
        """Return the error on the grid of the network, shape (B, data, ...); arguments of TissuePrepareBatch.

        With a ``tissue_loss`` also the weighted cross-entropy at each voxel, shape (B, data, ...).
        """
        pair = TrainingPair(inputs, network, region, condition)
        wanted = pair.noise - pair.x_0
        if not self.tissue_loss:
            return pair.velocity(network, pair.at(t), t, attributes) - wanted
        velocity, log_probability = pair.velocity(network, pair.at(t), t, attributes, return_tissues=True)
        true = pair.pool(tissues).unsqueeze(1)
        unknown = pair.known[:, -3:-2]
        return velocity - wanted, -self.tissue_loss * unknown * (true * log_probability).sum(dim=2)


class DenoisingObjective(Inferer):
    """Training inferer: the error of the noise at one of the steps of a DDPM (Ho et al., NeurIPS 2020).

    Args:
        num_train_steps: Length of the chain.
    """

    def __init__(self, num_train_steps: int = 1000) -> None:
        self.alpha_bar = alpha_bars(num_train_steps)

    def __call__(self, inputs, network, t, region, condition, attributes=None, tissues=None):
        """Return the error on the grid of the network, shape (B, data, ...); arguments of TissuePrepareBatch."""
        pair = TrainingPair(inputs, network, region, condition)
        step = (t * len(self.alpha_bar)).long().clamp(max=len(self.alpha_bar) - 1)
        self.alpha_bar = self.alpha_bar.to(t.device)  # in the first step only
        alpha_bar = per_sample(self.alpha_bar[step].float(), pair.x_0)
        x_t = alpha_bar.sqrt() * pair.x_0 + (1 - alpha_bar).sqrt() * pair.noise
        return pair.velocity(network, x_t, (step + 1) / len(self.alpha_bar), attributes) - pair.noise


class FewStepObjective(Inferer):
    """Training inferer of the second stage: mean velocities over long intervals that agree with two halves of them.

    A share of the batch learns the velocity as before. The rest learns u(x_t, t, d) to be the mean of what two steps of
    d/2 do, as the averaged network (the teacher) takes them; d is 1 (a single step), 1/2, 1/4, ... 1/finest
    (self-consistency of shortcut models, Frans et al., ICLR 2025, arXiv 2410.12557).

    Args:
        teacher: Network with the moving average of the weights.
        finest: Number of shortest intervals in [0, 1]; a power of two.
        share: Part of the batch that learns long intervals.
    """

    def __init__(self, teacher: torch.nn.Module, finest: int = 8, share: float = 0.5) -> None:
        if finest < 2 or finest & (finest - 1):
            raise ValueError(f"finest must be a power of two of at least 2, not {finest}")
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, not {share}")
        self.teacher, self.finest, self.share = teacher, finest, share

    def __call__(self, inputs, network, t, region, condition, attributes=None, tissues=None):
        """Return the error on the grid of the network, shape (B, data, ...); arguments of TissuePrepareBatch."""
        pair = TrainingPair(inputs, network, region, condition)
        count = round(self.share * len(t))  # the first samples learn long intervals
        long = torch.arange(len(t), device=t.device) < count
        interval = 0.5 ** torch.randint(self.finest.bit_length(), t.shape, device=t.device).float()  # 1 ... 1/finest
        ends = torch.ceil(t / interval).clamp(min=1) * interval  # so that every step of a sampler is met
        t, interval = torch.where(long, ends, t), torch.where(long, interval, 0)
        x_t, wanted = pair.at(t), pair.noise - pair.x_0
        with torch.no_grad():
            half = interval[:count] / 2
            told = None if attributes is None else attributes[:count]
            part = pair.first(count)
            # below the shortest interval the step follows the velocity itself, which the first stage has learned
            length = torch.where(half * self.finest < 0.75, 0, half)
            first = part.velocity(self.teacher, x_t[:count], t[:count], told, length)
            middle = x_t[:count] - per_sample(half, first) * first
            second = part.velocity(self.teacher, middle, t[:count] - half, told, length)
            wanted = torch.cat([(first + second) / 2, wanted[count:]])
        return pair.velocity(network, x_t, t, attributes, interval) - wanted


class TrainingPair:
    """A clean batch and its noise on the grid of the network, with what is known about it.

    Args:
        image: Clean patches, shape (B, 1, H, W[, D]).
        network: The :class:`TissueDenoiser`, possibly wrapped for several processes.
        region: Region M, the shape of the image.
        condition: Condition channels, shape (B, channels, H, W[, D]).
    """

    def __init__(self, image, network, region, condition) -> None:
        denoiser: TissueDenoiser = getattr(network, "module", network)
        self.x_0 = denoiser.encode(image)
        self.region = denoiser.pool(region)
        self.surroundings = self.x_0
        if denoiser.autoencoder:  # what lies in the region must not show in the latent around it
            self.surroundings = denoiser.encode(torch.where(region > 0, BLANK, image))
        self.known = torch.cat([self.region, denoiser.pool(condition)], dim=1)
        self.pool = denoiser.pool
        self.noise = torch.randn_like(self.x_0)

    def at(self, t: torch.Tensor) -> torch.Tensor:
        """Return (1 - t) x_0 + t eps for t of shape (B,)."""
        t = per_sample(t, self.x_0)
        return (1 - t) * self.x_0 + t * self.noise

    def first(self, count: int) -> "TrainingPair":
        """Return the pair of the first samples."""
        part = object.__new__(TrainingPair)
        for name, value in vars(self).items():
            setattr(part, name, value[:count] if isinstance(value, torch.Tensor) else value)
        return part

    def velocity(self, network, x_t, t, attributes=None, interval=None, **more):
        """Return the network's answer at x_t in the region, with the real surroundings outside it."""
        x_t = torch.where(self.region > 0, x_t, self.surroundings)
        return network(torch.cat([x_t, self.known], dim=1), t, attributes, interval, **more)


BLANK = 0.0  # what an image holds inside the region when its surroundings are encoded


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return one number a sample, shape (B,), in a shape that multiplies ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


class RegionMSELoss(torch.nn.Module):
    """Mean squared error over the region, weighted per voxel, and what an objective adds to it."""

    def forward(self, error: torch.Tensor | tuple[torch.Tensor, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
        """Return sum w (e^2 + a) / sum w.

        Args:
            error: Error e, shape (B, data, H, W[, D]); or e and a, the same shape.
            weight: Weight w, shape (B, 1, ...) on the same grid or a finer one.
        """
        error, added = error if isinstance(error, tuple) else (error, 0.0)
        if weight.shape[2:] != error.shape[2:]:
            pooling = (
                torch.nn.functional.adaptive_max_pool2d if error.ndim == 4 else torch.nn.functional.adaptive_max_pool3d
            )
            weight = pooling(weight, error.shape[2:])
        return (weight * (error**2 + added)).sum() / (weight.sum() * error.shape[1]).clamp(min=1)
