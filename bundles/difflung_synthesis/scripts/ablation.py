"""Class-balanced mask-ablated training (CBMAT): hide frequent tissues more often, so that each is learned alike.

CBMAT is named by Diff-Lung (Khiati et al. 2025, arXiv 2501.02867) without a public definition; the definition here is
this project's own. ``gamma=0, q_max=0.5, rho=0`` is the ablation of Konz et al. (MICCAI 2024), drawn per sample.
"""

from collections.abc import Iterator, Mapping, Sequence

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from .condition import UNKNOWN, tissue_values
from .prior import COMPONENTS, fit_mixture
from .sharpness import append_sharpness

MOST_VALUES = 5_000  # of a tissue in one item of the dataset; blocks hold millions
SMALLEST_DEVIATION = 0.05  # of a tissue, on the scale of the network
KEYS = ("image", "label")


def keep_probability(
    presence: torch.Tensor, gamma: float = 1.0, q_min: float = 0.1, q_max: float = 0.9
) -> torch.Tensor:
    """Return q_k, the probability that tissue k stays visible in a sample that is ablated.

    q_k = clip(q_max * (f_* / f_k)^gamma, q_min, q_max) with f_* the presence of the rarest tissue.

    Args:
        presence: f_k, share of the sampled patches that hold tissue k, shape (tissues,); 0 for a tissue that the
            training set lacks, which is left out of f_* and keeps q_max.
        gamma: 0 treats all tissues alike, 1 balances their exposure fully.
        q_min: lower bound of q_k.
        q_max: upper bound of q_k.

    Returns:
        Keep probabilities, shape (tissues,).

    Example:
        >>> keep_probability(torch.tensor([0.8, 0.4, 0.1]), gamma=1.0, q_min=0.0, q_max=0.8).tolist()
        [0.10000000149011612, 0.20000000298023224, 0.800000011920929]
    """
    if not 0 <= q_min <= q_max <= 1:
        raise ValueError(f"q_min={q_min} and q_max={q_max} must satisfy 0 <= q_min <= q_max <= 1")
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    seen = presence > 0
    if not seen.any():
        raise ValueError("no tissue occurs in the training patches, so there is nothing to learn")
    ratio = torch.where(seen, presence[seen].min() / presence.clamp(min=1e-12), torch.ones_like(presence))
    return (q_max * ratio**gamma).clamp(q_min, q_max)


def exposure(presence: torch.Tensor, keep: torch.Tensor, rho: float) -> torch.Tensor:
    """Return r_k = f_k (rho + (1 - rho) q_k), the share of patches in which tissue k is present and visible.

    Where not all tissues of a patch may be hidden, each is visible somewhat more often.

    Args:
        presence: f_k, shape (tissues,).
        keep: q_k, shape (tissues,).
        rho: probability that a sample keeps its full mask.
    """
    return presence * (rho + (1 - rho) * keep)


class ClassBalancedMaskAblation:
    """Hide whole tissues of a map from the network, per sample, the frequent ones more often.

    Args:
        labels: tissue name to value.
        gamma: strength of the balancing, see :func:`keep_probability`.
        q_min: lower bound of the keep probability.
        q_max: upper bound of the keep probability.
        rho: probability that a sample keeps its full mask.
        presence: f_k if known; :class:`MeasurePresence` sets it when training starts.
        hide_all: whether all tissues of a map may be hidden. Patches that are centred on rare tissues show what such
            patches hold, not what lungs hold; where other patches teach that, one tissue stays visible, the likelier
            the larger its q_k.

    Raises:
        ValueError: if ``rho`` is no probability.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        gamma: float = 1.0,
        q_min: float = 0.1,
        q_max: float = 0.9,
        rho: float = 0.1,
        presence: Sequence[float] | None = None,
        hide_all: bool = True,
    ) -> None:
        if not 0 <= rho <= 1:
            raise ValueError(f"rho must be a probability in [0, 1], not {rho}")
        self.values = tissue_values(labels)
        self.gamma, self.q_min, self.q_max, self.rho = gamma, q_min, q_max, rho
        self.hide_all = hide_all
        self.keep: torch.Tensor | None = None
        if presence is not None:
            self.fit(torch.as_tensor(presence, dtype=torch.float32))

    def fit(self, presence: torch.Tensor) -> None:
        """Set the keep probabilities from f_k, shape (tissues,)."""
        self.keep = keep_probability(presence, self.gamma, self.q_min, self.q_max)

    def __call__(self, tissue_map: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return the map with the voxels of hidden tissues set to UNKNOWN; background is never hidden.

        Args:
            tissue_map: label values, shape (B, 1, ...).
            generator: source of randomness on the CPU; the global one if None.

        Raises:
            RuntimeError: if the presence of the tissues has not been set.
        """
        if self.keep is None:
            raise RuntimeError("the presence of the tissues is unknown; give it, or attach MeasurePresence")
        samples = tissue_map.shape[0]
        full = torch.rand(samples, 1, generator=generator) < self.rho  # z ~ Bern(rho)
        kept = torch.rand(samples, len(self.values), generator=generator) < self.keep  # b_k ~ Bern(q_k)
        if not self.hide_all:
            present = torch.stack([(tissue_map == value).flatten(1).any(dim=1) for value in self.values], dim=1).cpu()
            odds = present * self.keep.clamp(min=1e-6)
            odds[~present.any(dim=1)] = 1
            one = torch.multinomial(odds, 1, generator=generator)
            kept |= torch.zeros_like(kept).scatter(1, one, True) & ~(kept & present).any(dim=1, keepdim=True)
        hidden = ~(full | kept).to(tissue_map.device)
        ablated = tissue_map.clone()
        for index, value in enumerate(self.values):
            hide = hidden[:, index].view(-1, *[1] * (tissue_map.ndim - 1))
            ablated[(tissue_map == value) & hide] = UNKNOWN
        return ablated


def tissue_presence(maps: torch.Tensor, labels: Mapping[str, int], min_voxels: int) -> torch.Tensor:
    """Return which tissues have at least ``min_voxels`` voxels in each map.

    Args:
        maps: label values, shape (B, 1, ...).
        labels: tissue name to value.
        min_voxels: tau, fewer voxels do not count as present.

    Returns:
        Booleans, shape (B, tissues).
    """
    flat = maps.flatten(1)
    return torch.stack([(flat == value).sum(1) >= min_voxels for value in tissue_values(labels)], dim=1)


def tissue_intensities(images: torch.Tensor, maps: torch.Tensor, labels: Mapping[str, int], network) -> list:
    """Return what the network sees of each tissue and, last, of the lung: a tensor of shape (data, voxels) each.

    Args:
        images: shape (B, 1, H, W, D).
        maps: label values, the same shape.
        labels: tissue name to value.
        network: :class:`TissueDenoiser`, which encodes.
    """
    if images.shape[-1] == 1:
        images, maps = images.squeeze(-1), maps.squeeze(-1)
    device = network.tissue_mean.device
    where = [maps == value for value in tissue_values(labels)] + [maps != 0]
    shares = network.pool(torch.cat(where, dim=1).float().to(device)).transpose(0, 1).flatten(1)
    values = network.encode(images.float().to(device)).transpose(0, 1).flatten(1)
    found = [values[:, share > 0.5] for share in shares]
    return [part[:, :: part.shape[1] // MOST_VALUES + 1].cpu() for part in found]


def attribute_vector(item: Mapping) -> torch.Tensor:
    """Return what an item of the dataset tells of its patient: attributes as encoded, and the sharpness of the CT."""
    encoded = torch.as_tensor(item.get("attributes", [])).float().view(1, -1)
    sharpness = torch.as_tensor(item.get("sharpness", float("nan"))).view(1)
    return append_sharpness(encoded, sharpness)[0]


class MeasurePresence:
    """Handler that measures f_k through the patch sampler in use, before the first iteration, and tissue intensities.

    The presence goes to the ablation and, as the buffer ``tissue_presence``, into the network's checkpoint, where the
    intensities of each tissue become the buffers ``tissue_mean`` and ``tissue_deviation``, see :mod:`scripts.prior`.
    What they are for which patient decides the weights of the prior, see :mod:`scripts.patient`.

    Args:
        dataset: training dataset; an item is a patch or a list of patches with image and label.
        ablation: what to fit.
        network: :class:`TissueDenoiser`.
        labels: tissue name to value.
        average: the moving average of the network, which takes over what is measured.
        min_voxels: tau, see :func:`tissue_presence`.
        num_patches: at least so many patches are drawn.
    """

    def __init__(
        self, dataset, ablation, network, labels, average=None, min_voxels: int = 16, num_patches: int = 4096
    ) -> None:
        self.dataset, self.ablation, self.labels = dataset, ablation, labels
        self.network, self.average = getattr(network, "module", network), getattr(average, "module", average)
        self.min_voxels, self.num_patches = min_voxels, num_patches

    def attach(self, engine: Engine) -> None:
        """Measure when the engine starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw patches, count, and hand the frequencies on; several processes average theirs."""
        present, seen, histograms, shares = [], [], [], []
        for images, maps, vector in self.patches():
            present.extend(tissue_presence(maps, self.labels, self.min_voxels).float())
            found = tissue_intensities(images, maps, self.labels, self.network)
            seen.append(found)
            histograms += [(vector, tissue, values) for tissue, values in enumerate(found[:-1])]
            counts = torch.stack([(maps.abs() == value).sum() for value in tissue_values(self.labels)])
            shares.append((vector, int((maps < 0).any()), counts.unsqueeze(1)))  # of patches told, and not told at all
        mean = torch.stack(present).mean(dim=0)
        presence = torch.as_tensor(idist.all_reduce(mean, op="SUM")).cpu() / idist.get_world_size()
        self.ablation.fit(presence)
        self.network.tissue_presence.copy_(presence)
        self.set_prior([torch.cat(parts, dim=1) for parts in zip(*seen)])
        network = self.network
        if network.tissue_prior and network.objective == "flow":
            mixtures = (network.tissue_mean, network.tissue_deviation)
            network.patient_logits.fit(histograms, shares, *mixtures, network.attributes)
            if self.average is not None:
                self.average.patient_logits.load_state_dict(network.patient_logits.state_dict())
        names = [name for name, value in sorted(self.labels.items(), key=lambda item: item[1]) if value != 0]
        shown = ", ".join(
            f"{n} {f:.2f}/{q:.2f}" for n, f, q in zip(names, presence.tolist(), self.ablation.keep.tolist())
        )
        engine.logger.info(f"tissue presence / keep probability: {shown}")

    def patches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield items of the dataset, images and maps of shape (B, 1, H, W, D) and what is told of the patient.

        They hold ``num_patches`` patches in all, or a few more.

        Raises:
            ValueError: if the dataset is empty.
        """
        if len(self.dataset) == 0:
            raise ValueError("the training dataset is empty; check datalist and fold")
        drawn = index = 0
        while drawn < self.num_patches:
            item = self.dataset[index % len(self.dataset)]
            patches = item if isinstance(item, list) else [item]
            images, maps = (torch.stack([torch.as_tensor(patch[key]) for patch in patches]) for key in KEYS)
            yield images, maps, attribute_vector(patches[0])
            drawn, index = drawn + len(patches), index + 1

    def set_prior(self, intensities: list[torch.Tensor]) -> None:
        """Store the mixture of each tissue, whose values and, last, the lung's are given; processes average theirs."""
        mixtures = []
        for values in intensities:
            found = values.shape[1] >= COMPONENTS
            mixture = fit_mixture(values, SMALLEST_DEVIATION) if found else torch.zeros(2, len(values), COMPONENTS)
            mixtures.append(torch.cat([mixture.flatten(), torch.tensor([float(found)])]))
        summed = torch.as_tensor(idist.all_reduce(torch.stack(mixtures), op="SUM")).cpu()
        shape = (len(mixtures), 2, len(intensities[0]), COMPONENTS)
        mixture = (summed[:, :-1] / summed[:, -1:].clamp(min=1)).view(shape)
        # a tissue that the training set lacks gets what the whole lung has
        mixture = torch.where(summed[:, -1].view(-1, 1, 1, 1) > 0, mixture, mixture[-1:])
        self.network.tissue_mean.copy_(mixture[:-1, 0].transpose(0, 1))
        self.network.tissue_deviation.copy_(mixture[:-1, 1].transpose(0, 1))
