"""What is measured before the first step: how often patches hold each tissue, and the HU of the tissues.

The frequencies decide the ablation (:mod:`scripts.ablation`), the HU the prior (:mod:`scripts.prior`).
"""

from collections.abc import Iterator, Mapping

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from .prior import COMPONENTS, fit_mixture
from .scan import append_scan, voxel_mm
from .seeded_loader import reseed
from .tissue_channels import tissue_values

MOST_VALUES = 5_000  # of a tissue in one item of the dataset; blocks hold millions
SMALLEST_DEVIATION = 0.05  # of a tissue, on the scale of the network
KEYS = ("image", "label")


def tissue_presence(maps: torch.Tensor, labels: Mapping[str, int], min_voxels: int) -> torch.Tensor:
    """Return which tissues have at least ``min_voxels`` voxels in each map.

    Args:
        maps: Label values, shape (B, 1, ...).
        labels: Label values by tissue name.
        min_voxels: Threshold tau; fewer voxels do not count as present.

    Returns:
        Booleans, shape (B, tissues).
    """
    flat = maps.flatten(1)
    return torch.stack([(flat == value).sum(1) >= min_voxels for value in tissue_values(labels)], dim=1)


def tissue_intensities(images: torch.Tensor, maps: torch.Tensor, labels: Mapping[str, int], network) -> list:
    """Return what the network sees of each tissue and, last, of the lung: a tensor of shape (data, voxels) each.

    Args:
        images: Patches of CT, shape (B, 1, H, W, D).
        maps: Label values, the same shape.
        labels: Label values by tissue name.
        network: The :class:`TissueDenoiser`, which encodes.
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
    """Return what an item of the dataset tells of its patient: attributes as encoded, and its scan."""
    encoded = torch.as_tensor(item.get("attributes", [])).float().view(1, -1)
    return append_scan(encoded, item.get("scan"))[0]


class MeasurePresence:
    """Handler that measures f_k through the patch sampler in use, before the first iteration, and tissue intensities.

    The presence goes to the ablation and, as the buffer ``tissue_presence``, into the network's checkpoint, where the
    intensities of each tissue become the buffers ``tissue_mean`` and ``tissue_deviation``, see :mod:`scripts.prior`.
    What they are for which patient decides the weights of the prior, see :mod:`scripts.prior_weights`.

    Args:
        dataset: Training dataset; an item is a patch or a list of patches with image and label.
        ablation: Ablation to fit.
        network: The :class:`TissueDenoiser`.
        labels: Label values by tissue name.
        average: The moving average of the network, which takes over what is measured.
        min_voxels: Threshold tau, see :func:`tissue_presence`.
        num_patches: Number of patches to draw at least.
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
        present, seen, histograms, shares, sizes = [], [], [], [], []
        for images, maps, vector in self.patches():
            sizes += [voxel_mm(vector)] * bool(vector[-2])
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
        if sizes:
            ends = [idist.all_reduce(end, op=op) for end, op in ((min(sizes), "MIN"), (max(sizes), "MAX"))]
            self.network.voxel_mm.copy_(torch.tensor(ends))
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

        They hold ``num_patches`` patches in all, or a few more, and are the same whoever drew from the dataset before.

        Raises:
            ValueError: If the dataset is empty.
        """
        if len(self.dataset) == 0:
            raise ValueError("the training dataset is empty; check datalist and fold")
        drawn = index = 0
        seeds = torch.Generator().manual_seed(torch.initial_seed() + idist.get_rank())
        while drawn < self.num_patches:
            with torch.random.fork_rng(devices=[]):
                seed = int(torch.randint(2**31, (), generator=seeds))
                torch.default_generator.manual_seed(seed)
                if hasattr(self.dataset, "transform"):
                    reseed(self.dataset.transform, seed)
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
