"""How close painted tissue comes to real tissue in HU, beside how close real tissue comes to itself."""

from collections.abc import Mapping

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.metrics import Metric

from .tissue_channels import plain, tissue_values


def wasserstein_1(first: torch.Tensor, second: torch.Tensor, bin_width: float) -> torch.Tensor:
    """Return the Wasserstein-1 distance of two histograms over the same bins: the area between their CDFs.

    Args:
        first: Counts of one histogram, shape (..., bins).
        second: Counts of the other, the same shape.
        bin_width: Width of a bin in HU, which is then the unit of the result.

    Returns:
        Shape (...); NaN where either histogram is empty.

    Example:
        >>> wasserstein_1(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 5.0]), bin_width=10.0).item()
        20.0
    """
    cdfs = [counts.cumsum(-1) / counts.sum(-1, keepdim=True) for counts in (first, second)]
    return (cdfs[0] - cdfs[1]).abs().sum(-1) * bin_width


class HuWasserstein(Metric):
    """Wasserstein-1 distance in HU between painted and real tissue, per tissue, with its real-versus-real floor.

    The cases that hold a tissue are taken alternately into two halves. Painted tissue of one half is compared with real
    tissue of the other, both ways round, averaged; the floor compares the real tissue of both. So painting is never set
    beside the very patients it was painted in. ``<name>`` is the mean over the tissues; ``<name>_<tissue>`` and
    ``<name>_floor_<tissue>`` are each tissue's own; tissues that fewer than two cases hold are absent.

    A network that only repeats a tissue's histogram scores well here. It is a check; texture and a classifier
    (:class:`~scripts.quality.TissueQuality`) say whether painted tissue passes for real.

    Args:
        labels: Label values by tissue name.
        bin_width: Width of a bin of the histograms, HU.
        lowest: HU of the first bin; darker voxels are counted there.
        highest: HU after the last bin; brighter voxels are counted there.
        output_transform: As in ignite; must give lists of painted CTs, shape (samples, W, H, D), HU, and of references,
            shape (2, W, H, D): real CT in HU and the tissue of each painted voxel (0 where nothing was painted).
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        bin_width: float = 2.0,
        lowest: float = -1024.0,
        highest: float = 400.0,
        output_transform=lambda output: output,
    ) -> None:
        self.names = [name for name, value in sorted(labels.items(), key=lambda item: item[1]) if value != 0]
        self.values = tissue_values(labels)
        self.bin_width, self.lowest = bin_width, lowest
        self.bins = round((highest - lowest) / bin_width)
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        """Forget all cases."""
        # painted and real, even and odd cases
        self.counts = torch.zeros(2, 2, len(self.values), self.bins, dtype=torch.float64)
        self.cases = [0] * len(self.values)  # that hold each tissue
        super().reset()

    def update(self, output) -> None:
        """Add the cases of one iteration."""
        for painted, reference in zip(*output):
            painted, reference = plain(painted).cpu(), plain(reference).cpu()
            for index, value in enumerate(self.values):
                where = reference[1] == value
                half = self.cases[index] % 2
                self.counts[0, half, index] += self.histogram(painted[:, where])
                self.counts[1, half, index] += self.histogram(reference[0][where])
                self.cases[index] += bool(where.any())

    def histogram(self, hu: torch.Tensor) -> torch.Tensor:
        """Return the counts of HU values per bin, shape (bins,)."""
        index = ((hu.flatten() - self.lowest) / self.bin_width).floor().clamp(0, self.bins - 1).long()
        return torch.bincount(index, minlength=self.bins).double()

    def compute(self) -> dict[str, float]:
        """Return tissue name, or ``floor_`` and tissue name, to distance in HU."""
        counts = torch.as_tensor(idist.all_reduce(self.counts))
        painted = wasserstein_1(counts[0], counts[1].flip(0), self.bin_width).mean(0)
        floor = wasserstein_1(counts[1, 0], counts[1, 1], self.bin_width)
        distances = {name: float(d) for name, d in zip(self.names, painted) if not d.isnan()}
        return distances | {f"floor_{name}": float(d) for name, d in zip(self.names, floor) if not d.isnan()}

    def completed(self, engine: Engine, name: str) -> None:
        """Store the mean under ``name`` and each distance under ``name_<key>``."""
        distances = self.compute()
        tissues = [distance for key, distance in distances.items() if not key.startswith("floor_")]
        engine.state.metrics[name] = sum(tissues) / len(tissues) if tissues else float("nan")
        for key, distance in distances.items():
            engine.state.metrics[f"{name}_{key}"] = distance
