"""Gradients that are too large are scaled down."""

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents


class ClipGradients:
    """Handler that scales the gradients down where their norm exceeds a limit.

    Args:
        network: Network whose gradients are clipped.
        max_norm: Limit of the norm.
    """

    def __init__(self, network: torch.nn.Module, max_norm: float) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be above 0, not {max_norm}")
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Engine) -> None:
        """Clip after each backward pass."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
