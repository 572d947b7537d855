"""Voxels that nobody labelled teach nothing."""

import torch
from monai.losses import DiceLoss
from monai.networks import one_hot


class WeightedDice(torch.nn.Module):
    """MONAI's DiceLoss over the batch, weighted by label; it looks at its weights once, and not in each step.

    Args:
        weight: Weight of each label in the order of the network's channels; all alike if None.

    Raises:
        ValueError: If a weight is negative.
    """

    def __init__(self, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        if weight is not None and weight.min() < 0:
            raise ValueError(f"the weights of labels must be at least 0, not {weight.tolist()}")
        self.register_buffer("weight", weight, persistent=False)
        self.dice = DiceLoss(batch=True, reduction="none")

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of probabilities against zeros and ones, both of shape (B, labels, H, W[, D])."""
        losses = self.dice(input, target).flatten()
        return (losses if self.weight is None else losses * self.weight).mean()


class LabelledDiceCELoss(torch.nn.Module):
    """Dice over the batch plus cross-entropy of the voxels that are labelled, as MONAI's DiceCELoss of those alone.

    Args:
        weight: Weight of each label, in the order of the network's channels; all alike if None.
        ignore: Value of voxels that nobody labelled.
    """

    def __init__(self, weight: torch.Tensor | None = None, ignore: int = 255) -> None:
        super().__init__()
        self.ignore = ignore
        self.dice = WeightedDice(weight)
        self.cross_entropy = torch.nn.CrossEntropyLoss(weight=weight, ignore_index=ignore)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss, 0 where no voxel is labelled.

        Args:
            input: Logits, shape (B, labels, H, W[, D]).
            target: Label values or ``ignore``, shape (B, 1, H, W[, D]).
        """
        target = target.long()
        labelled = target != self.ignore
        truth = one_hot(target.where(labelled, 0), input.shape[1]) * labelled
        dice = self.dice(input.softmax(dim=1) * labelled, truth)
        return dice + self.cross_entropy(input, target[:, 0]).nan_to_num(0.0)  # a mean over no voxel is not a number
