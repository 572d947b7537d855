"""Voxels that nobody labelled teach nothing; values that mean nothing are refused."""

from collections.abc import Mapping

import torch
from monai.data import MetaTensor
from monai.losses import DiceLoss
from monai.networks import one_hot


class LabelledDiceCELoss(torch.nn.Module):
    """Dice over the batch plus cross-entropy of the voxels that are labelled, as MONAI's DiceCELoss of those alone.

    Args:
        weight: Weight of each label, in the order of the network's channels; all alike if None.
        ignore: Value of voxels that nobody labelled.
    """

    def __init__(self, weight: torch.Tensor | None = None, ignore: int = 255) -> None:
        super().__init__()
        self.ignore = ignore
        self.dice = DiceLoss(batch=True, weight=weight)
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


class KnownLabels:
    """Passes label maps on, and refuses one that holds a value without a name.

    Args:
        labels: Label values by tissue name.
        ignore: Value of voxels that nobody labelled.
    """

    def __init__(self, labels: Mapping[str, int], ignore: int = 255) -> None:
        self.names = {value: name for name, value in labels.items()} | {ignore: "unlabelled"}

    def __call__(self, label: torch.Tensor) -> torch.Tensor:
        """Return the map as it is.

        Raises:
            ValueError: naming the file, the values that have no name, and those that have one.
        """
        unknown = sorted(set(label.unique().tolist()) - set(self.names))
        if unknown:
            path = label.meta.get("filename_or_obj", "a label map") if isinstance(label, MetaTensor) else "a label map"
            named = ", ".join(f"{name}={value}" for value, name in self.names.items())
            raise ValueError(f"{path} holds {', '.join(f'{value:g}' for value in unknown[:10])}; labels name {named}")
        return label
