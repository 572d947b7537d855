"""What travels when several sites train one network, each with its own patients."""

from collections.abc import Mapping

import torch
from torch import nn


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
