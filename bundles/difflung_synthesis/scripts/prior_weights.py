"""What is known of the patient as weights of the components of each tissue's histogram, and as the tissues' shares.

Both weigh components in :mod:`scripts.prior`.
"""

import ignite.distributed as idist
import torch
from torch import nn

from . import prior
from .attributes import Attributes
from .prior import COMPONENTS
from .scan import ENTRIES, withhold_scan

WIDTH = 32  # of the hidden layer
FIT_STEPS, FIT_RATE, FIT_DECAY = 400, 0.01, 0.01
EM_STEPS = 30
MOST_VOXELS = 256  # of a tissue of one patient


class PatientWeights(nn.Sequential):
    """Logits of the components of each tissue, and of the tissues' shares in UNKNOWN.

    The shares are those beside tissues that are told, and those of a patch not told at all: a patch of which a part is
    told is centred on a tissue, so its UNKNOWN says little of a lung of which nothing is told. All weights are equal
    until :meth:`fit`; training does not change them.

    Args:
        entries: Entries of the attribute vector, what is known of the scan among them.
        channels: Channels of the network's data.
        tissues: Number of tissues.
    """

    def __init__(self, entries: int, channels: int, tissues: int) -> None:
        super().__init__(
            nn.Linear(entries, WIDTH), nn.SiLU(), nn.Linear(WIDTH, channels * tissues * COMPONENTS + 2 * tissues)
        )
        nn.init.zeros_(self[-1].weight)
        nn.init.zeros_(self[-1].bias)
        self.requires_grad_(False)
        self.shape = (channels, tissues, COMPONENTS)

    def forward(self, attributes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of components and of shares.

        Args:
            attributes: Attribute vectors, shape (B, entries).

        Returns:
            Shape (B, channels, tissues, components); shape (B, 2, tissues), of UNKNOWN beside tissues that are told and
            of a patch not told at all.
        """
        shares = 2 * self.shape[1]
        components, shares = super().forward(attributes).tensor_split([-shares], dim=1)
        return components.view(-1, *self.shape), shares.view(-1, 2, self.shape[1])

    def fit(
        self, histograms: list, shares: list, means: torch.Tensor, deviations: torch.Tensor, attributes: Attributes
    ) -> None:
        """Learn the weights from the patients alone, by cross-entropy; several processes take the first one's.

        They stay: trained together with the U-Net, which can make up for them, they lost most of what they had learned.

        Args:
            histograms: Samples of three: attribute vector and scan of a patient, shape (entries,); which tissue;
                values of the network's data there, shape (channels, voxels). Those of one patient are put together.
            shares: Samples of three: vector as above; which shares, see :meth:`forward`; voxels of each tissue, shape
                (tissues, 1).
            means: Means of the components, shape (channels, tissues, components).
            deviations: Deviations of the components, the same shape.
            attributes: Encoder that draws what is withheld, as training does.
        """
        device = means.device
        histograms = [sample for sample in by_patient(histograms) if sample[2].shape[1] >= MOST_VOXELS]
        shares = [sample for sample in by_patient(shares) if sample[2].sum() >= MOST_VOXELS]
        if histograms and shares:
            of_tissue = torch.tensor([tissue for _, tissue, _ in histograms], device=device)
            spread = [torch.linspace(0, part.shape[1] - 1, MOST_VOXELS).long() for _, _, part in histograms]
            values = torch.stack([part[:, chosen] for (_, _, part), chosen in zip(histograms, spread)]).to(device)
            mixtures = (part[:, of_tissue].transpose(0, 1).unsqueeze(3) for part in (means, deviations))
            wanted = component_weights(prior.log_density(values.unsqueeze(2), *mixtures))
            of_row = torch.tensor([row for _, row, _ in shares], device=device)
            counts = torch.stack([counts.sum(dim=1) for _, _, counts in shares]).float().to(device)
            wanted_shares = counts / counts.sum(dim=1, keepdim=True)
            told, told_shares = (torch.stack([vector for vector, _, _ in part]) for part in (histograms, shares))
            self.requires_grad_(True)
            optimizer = torch.optim.AdamW(self.parameters(), lr=FIT_RATE, weight_decay=FIT_DECAY)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FIT_STEPS)
            for _ in range(FIT_STEPS):
                logits = self(withhold(told, attributes).to(device))[0][torch.arange(len(told)), :, of_tissue]
                loss = -(wanted * logits.log_softmax(dim=2)).sum(dim=2).mean()
                logits = self(withhold(told_shares, attributes).to(device))[1][torch.arange(len(shares)), of_row]
                loss = loss - (wanted_shares * logits.log_softmax(dim=1)).sum(dim=1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            self.zero_grad()
            self.requires_grad_(False)
        for parameter in self.parameters():
            parameter.data.copy_(idist.broadcast(parameter.data, src=0))


def by_patient(samples: list) -> list:
    """Return samples of :meth:`PatientWeights.fit`, those of one patient and row put together."""
    grouped: dict[tuple, list] = {}
    for vector, row, data in samples:
        grouped.setdefault((row, *vector.tolist()), []).append((vector, data))
    return [(group[0][0], key[0], torch.cat([data for _, data in group], dim=1)) for key, group in grouped.items()]


def withhold(vectors: torch.Tensor, attributes: Attributes) -> torch.Tensor:
    """Return attribute vectors and scan, shape (B, entries), of which some is made unknown, as in training."""
    return withhold_scan(torch.cat([attributes.drop(vectors[:, :-ENTRIES]), vectors[:, -ENTRIES:]], dim=1))


def component_weights(log_density: torch.Tensor) -> torch.Tensor:
    """Return the weights of given components that make values likeliest, by expectation maximisation.

    Args:
        log_density: Logarithm of the density of each value under each component, shape (samples, channels, components,
            values).

    Returns:
        Shape (samples, channels, components), summing to 1 over the components.
    """
    weights = torch.full(log_density.shape[:3], 1 / log_density.shape[2], device=log_density.device)
    for _ in range(EM_STEPS):
        posterior = torch.softmax(log_density + weights.clamp(min=1e-6).log().unsqueeze(3), dim=2)
        weights = posterior.mean(dim=3)
    return weights
