"""What is known of the patient as weights of the components of each tissue's histogram, see :mod:`scripts.prior`."""

import ignite.distributed as idist
import torch
from torch import nn

from . import prior
from .attributes import Attributes
from .prior import COMPONENTS
from .sharpness import UNKNOWN_SHARE

WIDTH = 32  # of the hidden layer
FIT_STEPS, FIT_RATE, FIT_DECAY = 400, 0.01, 0.01
EM_STEPS = 30
MOST_VOXELS = 256  # of a tissue of one patient


class PatientWeights(nn.Sequential):
    """Logits of the components of each tissue, of UNKNOWN beside tissues that are told, and of a patch not told at all.

    The last two differ: a patch of which a part is told is centred on a tissue, so its UNKNOWN says little of a lung of
    which nothing is told. All weights are equal until :meth:`fit`; training does not change them.

    Args:
        entries: of the attribute vector, the sharpness of the CT among them.
        channels: of the network's data.
        tissues: number of tissues.
    """

    def __init__(self, entries: int, channels: int, tissues: int) -> None:
        super().__init__(nn.Linear(entries, WIDTH), nn.SiLU(), nn.Linear(WIDTH, channels * (tissues + 2) * COMPONENTS))
        nn.init.zeros_(self[-1].weight)
        nn.init.zeros_(self[-1].bias)
        self.requires_grad_(False)
        self.shape = (channels, tissues + 2, COMPONENTS)

    def forward(self, attributes: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (B, channels, tissues + 2, components), of attributes, shape (B, entries)."""
        return super().forward(attributes).view(-1, *self.shape)

    def fit(self, samples: list, means: torch.Tensor, deviations: torch.Tensor, attributes: Attributes) -> None:
        """Learn the weights from histograms alone, by cross-entropy; several processes take the first one's.

        They stay: trained together with the U-Net, which can make up for them, they lost most of what they had learned.

        Args:
            samples: attribute vector and sharpness of a patient, shape (entries,); which logits; values of the
                network's data there, shape (channels, voxels). Those of one patient are put together.
            means: of the components, shape (channels, tissues + 1, components).
            deviations: likewise.
            attributes: which draws what is withheld, as training does.
        """
        grouped: dict[tuple, list] = {}
        for vector, row, values in samples:
            grouped.setdefault((row, *vector.tolist()), []).append((vector, values))
        samples = [
            (group[0][0], key[0], torch.cat([values for _, values in group], dim=1)) for key, group in grouped.items()
        ]
        samples = [sample for sample in samples if sample[2].shape[1] >= MOST_VOXELS]
        device = means.device
        if samples:
            told = torch.stack([vector for vector, _, _ in samples])
            rows = torch.tensor([row for _, row, _ in samples], device=device)
            spread = [torch.linspace(0, part.shape[1] - 1, MOST_VOXELS).long() for _, _, part in samples]
            values = torch.stack([part[:, chosen] for (_, _, part), chosen in zip(samples, spread)]).to(device)
            of_row = rows.clamp(max=means.shape[1] - 1)  # both kinds of UNKNOWN have the components of the lung
            means, deviations = (part[:, of_row].transpose(0, 1).unsqueeze(3) for part in (means, deviations))
            histograms = component_weights(prior.log_density(values.unsqueeze(2), means, deviations))
            self.requires_grad_(True)
            optimizer = torch.optim.AdamW(self.parameters(), lr=FIT_RATE, weight_decay=FIT_DECAY)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FIT_STEPS)
            every = torch.arange(len(samples), device=device)
            for _ in range(FIT_STEPS):
                sharpness = told[:, -2:] * (torch.rand(len(told), 1) >= UNKNOWN_SHARE)
                given = torch.cat([attributes.drop(told[:, :-2]), sharpness], dim=1).to(device)
                logits = self(given)[every, :, rows]
                loss = -(histograms * logits.log_softmax(dim=2)).sum(dim=2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            self.zero_grad()
            self.requires_grad_(False)
        for parameter in self.parameters():
            parameter.data.copy_(idist.broadcast(parameter.data, src=0))


def component_weights(log_density: torch.Tensor) -> torch.Tensor:
    """Return the weights of given components that make values likeliest, by expectation maximisation.

    Args:
        log_density: of each value under each component, shape (samples, channels, components, values).

    Returns:
        Shape (samples, channels, components), summing to 1 over the components.
    """
    weights = torch.full(log_density.shape[:3], 1 / log_density.shape[2], device=log_density.device)
    for _ in range(EM_STEPS):
        posterior = torch.softmax(log_density + weights.clamp(min=1e-6).log().unsqueeze(3), dim=2)
        weights = posterior.mean(dim=3)
    return weights
