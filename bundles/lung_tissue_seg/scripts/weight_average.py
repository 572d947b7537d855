"""A moving average of the weights in two kernels instead of two for each tensor.

Both bundles have this file, letter by letter, since neither may read from the other.
"""

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler


class WeightAverage(EMAHandler):
    """An EMAHandler that averages all tensors at once: a GPU starts kernels for longer than it computes them.

    The average is the same, bit for bit. After each epoch all processes take that of the first one, which is saved:
    their batch statistics differ, and each of them validates some of the cases.
    """

    def attach(self, engine: Engine, *args, **kwargs) -> None:
        """Average after each step, and share the average after each epoch."""
        super().attach(engine, *args, **kwargs)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.share)

    @torch.no_grad()
    def share(self, engine: Engine) -> None:
        """Take the average of the first process."""
        if idist.get_world_size() > 1:
            for tensor in (*self.ema_model.parameters(), *self.ema_model.buffers()):
                tensor.copy_(idist.broadcast(tensor.contiguous(), src=0))

    @torch.no_grad()
    def _update_ema_model(self, engine: Engine, name: str) -> None:
        momentum = getattr(engine.state, name)
        pairs = list(zip(self.ema_model.parameters(), self.model.parameters()))
        for average, value in zip(self.ema_model.buffers(), self.model.buffers()):
            if self.handle_buffers == "update" and average.is_floating_point():
                pairs.append((average, value))
            elif self.handle_buffers != "ema_train":
                average.data = value.data
        averages, values = (list(tensors) for tensors in zip(*pairs))
        torch._foreach_mul_(averages, 1.0 - momentum)
        torch._foreach_add_(averages, values, alpha=momentum)
