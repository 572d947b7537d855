"""What travels when several sites train one network, each with its own patients."""

from collections.abc import Mapping

import torch
from ignite.engine import Engine
from torch import nn

from .measure import MeasurePresence, tissue_intensities, tissue_presence

BINS = 1024  # of the HU window
VALUES = 16_384  # that stand for a histogram


class NetworkAndAverage(nn.Module):
    """The network in training and its moving average as one, so that a federation goes on from the mean of both.

    A moving average is linear in the weights it has seen: the mean of the sites' moving averages is the moving average
    of the mean weights. It is what answers outside training, and what is saved in the end.

    Its state holds floating-point tensors alone: whatever else a network keeps has no mean and stays at the site.

    Args:
        network: Network that is trained.
        average: Its moving average, a network of the same kind.
    """

    def __init__(self, network: nn.Module, average: nn.Module) -> None:
        super().__init__()
        self.network, self.average = network, average

    @property
    def module(self) -> nn.Module:
        """The network while it trains, else its average; what wraps a network has it under this name."""
        return self.network if self.training else self.average

    def forward(self, *args, **kwargs):
        """Return the answer of :attr:`module`."""
        return self.module(*args, **kwargs)

    def state_dict(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        """Return the floating-point tensors of both."""
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if torch.is_tensor(value) and value.is_floating_point()}

    def load_state_dict(self, state_dict: Mapping, strict: bool = True, assign: bool = False):
        """Load what :meth:`state_dict` gave; what does not travel stays as it is.

        Raises:
            ValueError: If ``strict`` and a tensor is missing.
        """
        missing = sorted(self.state_dict().keys() - state_dict.keys())
        if strict and missing:
            raise ValueError(
                f"the shared weights lack {missing[0]} and {len(missing) - 1} more; are they this bundle's?"
            )
        return super().load_state_dict(super().state_dict() | dict(state_dict), strict=strict, assign=assign)


class Shared(NetworkAndAverage):
    """The synthesizer and its moving average, with the histogram of each tissue that they were trained with.

    Args:
        network: The :class:`TissueDenoiser`.
        average: Its moving average.

    Attributes:
        histograms: Voxels per patch of each tissue and, last, of the lung, per bin of the HU window, shape (tissues +
            1, BINS); once averaged over the sites it is the histogram of all their patches.

    Raises:
        ValueError: If the network works on a latent, whose values have no bounds that the sites could agree on.
    """

    def __init__(self, network: nn.Module, average: nn.Module) -> None:
        super().__init__(network, average)
        if network.autoencoder:
            raise ValueError("sites can train together in pixel space only, but the network has an autoencoder")
        self.register_buffer("histograms", torch.zeros(len(network.tissue_presence) + 1, BINS))


class MeasureTogether(MeasurePresence):
    """Handler that measures over several sites what :class:`MeasurePresence` measures over one.

    When the engine starts for the first time this site's presence and histograms are counted, and it stops before any
    step. They are then averaged with the weights. When it starts for the second time the mean presence decides the
    ablation and the mean histograms become the prior: the same at each site, and never changed again.
    What is known of the patient keeps equal weights in the prior (see :mod:`scripts.prior_weights`): to learn them
    needs values of single patients. The U-Net is told of the patient as ever.

    Args:
        dataset: Training dataset of this site.
        ablation: Ablation to fit.
        shared: What travels, a :class:`Shared`.
        labels: Label values by tissue name.
        min_voxels: Threshold tau, see :func:`tissue_presence`.
        num_patches: Number of patches to draw at least.
    """

    def __init__(
        self, dataset, ablation, shared: Shared, labels, min_voxels: int = 16, num_patches: int = 4096
    ) -> None:
        super().__init__(dataset, ablation, shared.network, labels, shared.average, min_voxels, num_patches)
        self.shared, self.starts = shared, 0

    def __call__(self, engine: Engine) -> None:
        """Count and stop, then take up what all sites have counted."""
        self.starts += 1
        if self.starts == 1:
            self.count()
            engine.terminate()
        elif self.starts == 2:
            self.ablation.fit(self.network.tissue_presence.cpu())
            self.set_prior([self.values(histogram) for histogram in self.shared.histograms.cpu()])

    def count(self) -> None:
        """Write this site's presence and histograms into what is shared."""
        present, histograms, scale = [], 0, self.network.data_scale
        for images, maps, _ in self.patches():
            present.extend(tissue_presence(maps, self.labels, self.min_voxels).float())
            found = tissue_intensities(images, maps, self.labels, self.network)
            histograms += torch.stack([torch.histc(part, BINS, -scale, scale) for part in found])
        self.network.tissue_presence.copy_(torch.stack(present).mean(dim=0))
        self.shared.histograms.copy_(histograms / len(present))

    def values(self, histogram: torch.Tensor) -> torch.Tensor:
        """Return values on the scale of the network that are distributed as a histogram, shape (1, VALUES or 0)."""
        if histogram.sum() == 0:
            return torch.zeros(1, 0)
        scale = self.network.data_scale
        below = histogram.double().cumsum(0) / histogram.double().sum()
        shares = (torch.arange(VALUES) + 0.5) / VALUES
        bins = torch.searchsorted(below, shares.double()).clamp(max=BINS - 1)
        return (((bins + 0.5) / BINS * 2 - 1) * scale).float().unsqueeze(0)
