"""Class-balanced mask-ablated training (CBMAT): hide frequent tissues more often, so that each is learned alike.

CBMAT is named by Diff-Lung (Khiati et al. 2025, arXiv 2501.02867) without a public definition; the definition here is
this project's own (``docs/method.md`` in the repository). ``gamma=0, q_max=0.5, rho=0`` is the ablation of Konz et al.
(MICCAI 2024), drawn per sample.
"""

from collections.abc import Mapping, Sequence

import torch

from .tissue_channels import UNKNOWN, tissue_values


def keep_probability(
    presence: torch.Tensor, gamma: float = 1.0, q_min: float = 0.1, q_max: float = 0.9
) -> torch.Tensor:
    """Return q_k, the probability that tissue k stays visible in a sample that is ablated.

    q_k = clip(q_max * (f_* / f_k)^gamma, q_min, q_max) with f_* the presence of the rarest tissue.

    Args:
        presence: Share f_k of the sampled patches that hold tissue k, shape (tissues,); 0 for a tissue that the
            training set lacks, which is left out of f_* and keeps q_max.
        gamma: Strength of the balancing; 0 treats all tissues alike, 1 balances their exposure fully.
        q_min: Lower bound of q_k.
        q_max: Upper bound of q_k.

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
        presence: Shares f_k of patches that hold each tissue, shape (tissues,).
        keep: Keep probabilities q_k, shape (tissues,).
        rho: Probability that a sample keeps its full mask.
    """
    return presence * (rho + (1 - rho) * keep)


class ClassBalancedMaskAblation:
    """Hide whole tissues of a map from the network, per sample, the frequent ones more often.

    Args:
        labels: Label values by tissue name.
        gamma: Strength of the balancing, see :func:`keep_probability`.
        q_min: Lower bound of the keep probability.
        q_max: Upper bound of the keep probability.
        rho: Probability that a sample keeps its full mask.
        presence: Shares f_k if known; :class:`~scripts.measure.MeasurePresence` sets them when training starts.
        hide_all: Whether all tissues of a map may be hidden. Patches that are centred on rare tissues show what such
            patches hold, not what lungs hold; where other patches teach that, one tissue stays visible, the likelier
            the larger its q_k.

    Raises:
        ValueError: If ``rho`` is no probability.
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
            tissue_map: Label values, shape (B, 1, ...).
            generator: Source of randomness on the CPU; the global one if None.

        Raises:
            RuntimeError: If the presence of the tissues has not been set.
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
