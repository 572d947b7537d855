"""The networks whose speed is compared: the shipped one, the same computed plainly, one in the style of Konz et al."""

import copy
import dataclasses
import itertools
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tools.io.files import InputError
from tools.workflows.run import read_bundle
from tools.workflows.synthesizer import SYNTHESIZER


@dataclasses.dataclass(frozen=True)
class Contender:
    """One network with all it takes to train it."""

    name: str  # in the table
    network: nn.Module  # whose parameters are counted
    # images (B, channels, H, W) and times in [0, 1], shape (B,), to a prediction (B, 1, H, W)
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    optimizer: torch.optim.Optimizer
    images: torch.Tensor  # the batch on which it is measured

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return count(self.network)


def count(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def shipped_contender(device: torch.device, patch: int, batch: int, overrides: dict) -> Contender:
    """Return the network and the optimizer that train.json builds."""
    parser = read_bundle(SYNTHESIZER, "train.json")
    for key, value in {"device": str(device), **overrides}.items():
        parser[key] = value
    network = parser.get_parsed_content("network")
    images = torch.randn(batch, network.input_channels, patch, patch, device=device)
    return Contender("shipped", network, network, parser.get_parsed_content("optimizer"), images)


def plain_contender(shipped: Contender) -> Contender:
    """Return the shipped network in float32, contiguous memory and with an AdamW that is not fused."""
    network = copy.deepcopy(shipped.network).to(memory_format=torch.contiguous_format)

    def predict(images: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        given = torch.zeros(len(images), network.attribute_entries + 1, device=images.device)
        missing = network.unet.in_channels - images.shape[1]  # what the network makes of the noisy image and the prior
        images = torch.cat([images, images[:, :1].expand(-1, missing, *images.shape[2:])], dim=1)
        return network.unet(images, times * 1000, class_labels=given)[:, : network.data_channels]  # less the log odds

    return Contender("same, plain float32", network, predict, torch.optim.AdamW(network.parameters()), shipped.images)


def reference_class() -> type[nn.Module]:
    """Return diffusers' UNet2DModel; InputError if it cannot be imported."""
    try:
        from diffusers import UNet2DModel
    except (ImportError, RuntimeError) as error:  # diffusers tells RuntimeError when one of its own needs is missing
        raise InputError(
            f"bench compares with diffusers, which cannot be imported ({str(error).splitlines()[-1]}); "
            "pip install -r requirements-dev.txt"
        ) from None
    return UNet2DModel


def build_reference(unet: type[nn.Module], widths: tuple[int, ...]) -> nn.Module:
    """Return the layout of Konz et al.: six levels, two residual blocks each, attention at the last but one."""
    return unet(
        in_channels=2,  # the noisy image and the mask
        out_channels=1,
        layers_per_block=2,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
        norm_num_groups=4,  # four or five channels each near width 20, as 32 groups have at their 128
    )


def reference_widths(unet: type[nn.Module], parameters: int) -> tuple[int, ...]:
    """Return the widths of the six levels whose number of parameters is closest to ``parameters``.

    Theirs are 128, 128, 256, 256, 512 and 512. Here a multiple of 4, its double, and for the last two levels its
    fourfold or one attention head (8 channels) more or less.
    """

    def distance(widths: tuple[int, ...]) -> int:
        with torch.device("meta"):
            return abs(count(build_reference(unet, widths)) - parameters)

    best, width = distance((4, 4, 8, 8, 16, 16)), 4
    while (wider := distance(tuple((width + 4) * factor for factor in (1, 1, 2, 2, 4, 4)))) < best:
        best, width = wider, width + 4
    nearby = [deep for deep in (4 * width - 8, 4 * width, 4 * width + 8) if deep % 8 == 0]
    last = itertools.product(nearby, nearby)
    return min(((width, width, 2 * width, 2 * width, *deep) for deep in last), key=distance)


def reference_contender(unet: type[nn.Module], shipped: Contender) -> Contender:
    """Return the reference of as many parameters, on the first two channels of the same patches."""
    network = build_reference(unet, reference_widths(unet, shipped.parameters)).to(shipped.images.device)
    optimizer = torch.optim.AdamW(network.parameters())
    images = shipped.images[:, :2].contiguous()
    return Contender("Konz style", network, lambda x, t: network(x, t * 1000).sample, optimizer, images)


def train_step(contender: Contender, times: torch.Tensor, target: torch.Tensor) -> None:
    """Go forward, backward and one step of AdamW."""
    contender.optimizer.zero_grad()
    nn.functional.mse_loss(contender.predict(contender.images, times), target).backward()
    contender.optimizer.step()


@torch.no_grad()
def forward_pass(contender: Contender, times: torch.Tensor, target: torch.Tensor | None = None) -> None:
    """Go forward, as sampling does."""
    contender.predict(contender.images, times)


def gigaflops(contender: Contender, times: torch.Tensor) -> float:
    """Return the floating-point operations of one forward pass in thousand millions."""
    with FlopCounterMode(display=False) as counter:
        forward_pass(contender, times)
    return counter.get_total_flops() / 1e9
