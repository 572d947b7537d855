"""A loss that asks apart: is this lung, and which tissue is it; voxels that nobody labelled teach nothing."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.networks import one_hot

from .unlabelled import WeightedDice


class LungTissueLoss(torch.nn.Module):
    """Cross-entropy and Dice of lung against the rest, and cross-entropy and Dice of the tissues within the lung.

    The logits of all tissues together say *lung*, so the network needs no output of its own for it. The weights of
    the tissues have no say in where the lung ends: a weighted cross-entropy over all labels moves that border.

    Args:
        weight: Weight of each label in the order of the network's channels; the first, of the background, is not used.
        lung_weight: Weight of the question whether a voxel is lung.
        dense: Value of the tissue that is as dense as the chest wall, such as consolidation; None for none.
        dense_weight: Weight of its voxels in that question, to which they are a rare and hard part.
        ignore: Value of voxels that nobody labelled.
    """

    def __init__(
        self, weight: Sequence[float] | torch.Tensor, lung_weight: float = 1.0, dense: int | None = None,
        dense_weight: float = 1.0, ignore: int = 255,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("weight", torch.as_tensor(weight, dtype=torch.float32)[1:].clone(), persistent=False)
        self.lung_weight, self.dense, self.dense_weight, self.ignore = lung_weight, dense, dense_weight, ignore
        self.dice = WeightedDice(self.weight)
        self.lung_dice = DiceLoss(batch=True)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss, 0 where no voxel is labelled.

        Args:
            input: Logits, shape (B, labels, H, W[, D]).
            target: Label values or ``ignore``, shape (B, 1, H, W[, D]).
        """
        logits, target = input.float(), target.long()
        labelled = target != self.ignore
        lung = ((target > 0) & labelled).float()
        lung_logit = logits[:, 1:].logsumexp(1, keepdim=True) - logits[:, :1]
        counted = labelled.float()
        if self.dense is not None:
            counted = counted + (self.dense_weight - 1) * (target == self.dense)
        lung_part = F.binary_cross_entropy_with_logits(lung_logit, lung, weight=counted, reduction="sum")
        lung_part = lung_part / counted.sum().clamp(min=1)
        lung_part = lung_part + self.lung_dice(lung_logit.sigmoid() * labelled, lung)
        known = target.where(labelled & (target > 0), self.ignore + 1) - 1
        tissue = F.cross_entropy(logits[:, 1:], known[:, 0], self.weight, ignore_index=self.ignore)
        truth = one_hot(target.where(labelled, 0), logits.shape[1])[:, 1:]
        tissue = tissue.nan_to_num(0.0) + self.dice(logits.softmax(1)[:, 1:] * labelled, truth)
        return self.lung_weight * lung_part + tissue
