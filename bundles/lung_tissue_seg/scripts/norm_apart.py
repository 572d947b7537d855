"""Batch norm that takes synthetic cases apart from real ones, whose statistics alone the trained network keeps."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.engines import PrepareBatch, default_prepare_batch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .sampling import EXTRA


class NormApart(PrepareBatch):
    """Prepares batches for a network that normalises cases of fold -1 by their own mean and variance.

    After the auxiliary batch norm of Xie et al., Adversarial Examples Improve Image Recognition, CVPR 2020, section
    4.2, but with one scale and shift for both kinds. What is normalised in training needs the batch alone, so nothing
    is kept of the synthetic cases: the running statistics, with which the network answers, are those of the real ones,
    and checkpoints hold what they hold without this. A step without real cases leaves the running statistics.

    The loader puts the real ones first (:func:`real_first`), so the layers take slices of a length that is known on the
    CPU, and no GPU is waited for.

    Args:
        network: Network whose layers of batch norm are changed, possibly wrapped for several processes.
        cases: Cases that are trained on, with a ``fold`` each.

    Raises:
        ValueError: If the network has no batch norm, or the cases are all of fold -1 or none of them is.
    """

    def __init__(self, network: nn.Module, cases: Sequence[Mapping]) -> None:
        self.norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        if not self.norms:
            raise ValueError("norm_apart needs a network with batch norm; set network_def::norm to batch")
        extra = sum(case.get("fold") == EXTRA for case in cases)
        if extra in (0, len(cases)):
            raise ValueError(
                f"norm_apart keeps cases of fold -1 apart from others, but {extra} of {len(cases)} are in fold -1"
            )
        for module in self.norms:
            kind = type(module)
            module.__class__ = type(kind.__name__, (_SplitNorm, kind), {})

    def __call__(self, batchdata: dict, device=None, non_blocking: bool = False, **kwargs):
        """Return image and label on the device, and tell the layers how many of them are real."""
        real = int((batchdata["fold"] != EXTRA).sum())
        for module in self.norms:
            module.real = real
        return default_prepare_batch(batchdata, device, non_blocking, **kwargs)


class _SplitNorm:
    """Batch norm that takes the first ``real`` items of a batch and the others apart; None takes all as one."""

    real: int | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the input, shape (B, C, ...), normalised; the others are not counted in the running statistics."""
        if not self.training or self.real in (None, len(input)):
            return super().forward(input)
        others = input[self.real :]
        others = F.batch_norm(others, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return torch.cat([super().forward(input[: self.real]), others]) if self.real else others


def real_first(batch: dict) -> dict:
    """Return a collated batch with the items of fold -1 last; the order is kept otherwise.

    Args:
        batch: Tensors and lists of B items each, among them ``fold``, integers of shape (B,).

    Example:
        >>> real_first({"fold": torch.tensor([-1, 0, -1, 2]), "case": ["a", "b", "c", "d"]})["case"]
        ['b', 'd', 'a', 'c']
    """
    order = torch.argsort((batch["fold"] == EXTRA).int(), stable=True)
    return {
        key: value[order] if isinstance(value, torch.Tensor) else [value[index] for index in order.tolist()]
        for key, value in batch.items()
    }
