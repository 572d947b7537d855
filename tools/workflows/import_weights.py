"""``python -m tools import-weights``: start the synthesizer's training from a diffusion U-Net of monai-generative."""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from tools.io.files import InputError, atomic_file, check_writable, first_line
from tools.workflows.run import read_bundle
from tools.workflows.synthesizer import SYNTHESIZER

NESTED = ("model", "state_dict", "unet_state_dict", "network", "unet")
OBJECTIVES = ("ddpm", "flow")
SETTINGS = ("num_res_blocks", "attention_levels", "num_head_channels", "norm_num_groups", "spatial_dims")
TOLERANCE = 1e-5  # relative difference of the two networks' outputs in float32


def import_weights(
    source: Path, output: Path, num_head_channels: int, norm_num_groups: int, objective: str = "ddpm"
) -> None:
    """Turn a DiffusionModelUNet trained with monai-generative 0.2.3 into weights to start the synthesizer from.

    Carried over is all but what the first convolution does with input channels after the noisy image: no condition of
    another project means what ours mean, so ours start without influence. The result is a start for training and paints
    nothing useful before; training also has to learn our scale, [-1, 1] (monai-generative's is usually [0, 1]).

    Nothing is written unless monai-generative's network and the new one agree on random patches, the other channels at
    zero, to 1e-5 of the output's norm. The tensors tell the shape of the network; two settings leave no trace in them
    and must be given as they were in training: a wrong one goes unnoticed.

    Args:
        source: Checkpoint, a state dict by itself or under model, state_dict, unet_state_dict, network or unet, with
            any prefix of its names; a file that ends in .safetensors needs that package.
        output: File to write, the state dict of the bundle's network.
        num_head_channels: Channels of an attention head, one number for all levels.
        norm_num_groups: Groups of the group normalisation.
        objective: ddpm goes on with the noise the checkpoint predicts; flow asks for a velocity and so takes longer.

    Raises:
        InputError: if the file is missing, holds pickled objects or no U-Net that the bundle can hold, a setting is
            impossible, the outputs differ, or ``output`` exists or cannot be written.
    """
    output = Path(output)
    if objective not in OBJECTIVES:
        raise InputError(f"objective must be {' or '.join(OBJECTIVES)}, not {objective!r}")
    if output.exists():
        raise InputError(f"output {output} exists; remove it or name another file")
    check_writable(output.parent)
    weights = find_state_dict(read_checkpoint(Path(source)), source)
    shape = infer_architecture(weights, source)
    shape |= {"num_head_channels": num_head_channels, "norm_num_groups": norm_num_groups}
    check_groups(shape)
    reference = build_reference(shape, weights, source)
    denoiser = build_denoiser(shape, objective)
    carry_over(weights, denoiser)
    difference = relative_difference(reference, denoiser, source)
    if not difference < TOLERANCE:
        raise InputError(
            f"{source} gives outputs that differ by {difference:.1e} of their norm after the conversion, more than "
            f"{TOLERANCE:.0e}; it may have been trained with another version than monai-generative 0.2.3"
        )
    with atomic_file(output) as temporary:
        torch.save(denoiser.state_dict(), temporary)
    flags = [f"--objective {objective}", f"--network_channels '{shape['channels']}'"]
    flags += ["--tissue_prior False", "--data_scale 1.0"]
    flags += [f"--network_def::{name} '{shape[name]}'" for name in SETTINGS]
    print(
        f"wrote {output}: {shape['spatial_dims']}D, the first of {shape['in_channels']} input channels carried over, "
        f"outputs agree to {difference:.1e}; the bundle's configs load it with {' '.join(flags)}"
    )


def read_checkpoint(source: Path) -> object:
    """Read a checkpoint without running code that it may hold; InputError if it is none or holds pickled objects."""
    if not source.is_file():
        raise InputError(f"{source} does not exist")
    if source.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise InputError(f"{source} needs the package safetensors; pip install safetensors") from None
        try:
            return load_file(source)
        except Exception as error:  # safetensors has an error class of its own for a damaged file
            raise InputError(f"{source} is not a safetensors file: {first_line(error)}") from None
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            raise InputError(
                f"{source} holds pickled objects, which could run code when loaded; save the network's state_dict()"
            ) from None
        raise InputError(f"{source} is not a PyTorch checkpoint") from None


def find_state_dict(checkpoint: object, source: Path) -> dict[str, torch.Tensor]:
    """Return the U-Net's tensors in float32 by their own names, without nesting and prefix; InputError without one."""
    nested = [checkpoint.get(name) for name in NESTED] if isinstance(checkpoint, Mapping) else []
    for candidate in (found for found in (checkpoint, *nested) if isinstance(found, Mapping)):
        named = {str(name): value for name, value in candidate.items()}
        prefixes = [name.removesuffix("conv_in.conv.weight") for name in named if name.endswith("conv_in.conv.weight")]
        if len(prefixes) == 1:
            prefix = prefixes[0]
            foreign = [name for name in named if not name.startswith(prefix)]
            if foreign:
                raise InputError(f"{source} holds {foreign[0]!r}, which is not below {prefix!r} as the U-Net is")
            odd = [name for name, value in named.items() if not isinstance(value, torch.Tensor)]
            if odd:
                raise InputError(f"{source} holds {odd[0]!r}, which is not a tensor")
            return {name.removeprefix(prefix): value.float() for name, value in named.items()}
    raise InputError(f"{source} holds no DiffusionModelUNet: there is no conv_in.conv.weight in it")


def infer_architecture(weights: Mapping[str, torch.Tensor], source: Path) -> dict:
    """Return the constructor's arguments that the tensors tell; InputError if the bundle cannot hold such a network."""
    unfit = {
        r"class_embedding\.": "classes",
        r".*\.transformer_blocks\.": "cross-attention",
        r".*\.(downsampler|upsampler)\.norm1\.": "resampling in residual blocks",
        r".*\.attn\.": "the attention of MONAI core, not of monai-generative",
    }
    for pattern, what in unfit.items():
        found = next((name for name in weights if re.match(pattern, name)), None)
        if found:
            raise InputError(f"{source} is a U-Net with {what} ({found}), which cannot be imported")
    conv_in, conv_out = weights["conv_in.conv.weight"], weights.get("out.2.conv.weight")
    blocks: dict[int, set[int]] = {}
    for name in weights:
        if found := re.match(r"down_blocks\.(\d+)\.resnets\.(\d+)\.", name):
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
    levels = range(len(blocks))
    last = [f"down_blocks.{level}.resnets.0.conv2.conv.weight" for level in levels]
    if conv_out is None or not blocks or set(blocks) != set(levels) or not all(name in weights for name in last):
        raise InputError(f"{source} lacks blocks of a DiffusionModelUNet: it has {', '.join(sorted(weights)[:3])}, …")
    if conv_in.ndim not in (4, 5):
        raise InputError(f"{source} has a first convolution of shape {tuple(conv_in.shape)}, neither 2D nor 3D")
    if conv_out.shape[0] != 1:
        raise InputError(f"{source} predicts {conv_out.shape[0]} channels, but the bundle's network predicts 1")
    return {
        "spatial_dims": conv_in.ndim - 2,
        "in_channels": conv_in.shape[1],
        "out_channels": 1,
        "channels": [weights[name].shape[0] for name in last],
        "num_res_blocks": [len(blocks[level]) for level in levels],
        "attention_levels": [any(name.startswith(f"down_blocks.{n}.attentions.") for name in weights) for n in levels],
    }


def check_groups(shape: Mapping) -> None:
    """Raise InputError if the two settings that the user gives do not divide the widths."""
    channels = shape["channels"]
    attending = [width for width, attends in zip(channels, shape["attention_levels"]) if attends]
    attending.append(channels[-1])  # the middle block always attends
    for name, widths in {"norm_num_groups": channels, "num_head_channels": attending}.items():
        value = shape[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or any(w % value for w in widths):
            raise InputError(f"{name} must divide the channels {', '.join(map(str, widths))}, but {value} does not")


def build_reference(shape: Mapping, weights: Mapping[str, torch.Tensor], source: Path) -> nn.Module:
    """Return monai-generative's network with all the weights of the checkpoint; InputError unless they fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the archived package uses torch.cuda.amp
        from generative.networks.nets import DiffusionModelUNet

    arguments = {name: value for name, value in shape.items() if name != "channels"}
    network = DiffusionModelUNet(num_channels=shape["channels"], **arguments)
    wanted = network.state_dict()
    problems = [f"lacks {name}" for name in wanted if name not in weights]
    problems += [f"holds {name}, which a U-Net of its kind has not" for name in weights if name not in wanted]
    problems += [
        f"has {name} of shape {tuple(weights[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{source} {problems[0]}{more}")
    network.load_state_dict(weights)
    return network.eval()


def build_denoiser(shape: Mapping, objective: str) -> nn.Module:
    """Return the bundle's network, as train.json builds it, of the checkpoint's shape and in float32."""
    parser = read_bundle(SYNTHESIZER, "train.json")
    parser["objective"], parser["network_channels"], parser["amp"] = objective, shape["channels"], False
    parser["tissue_prior"], parser["data_scale"] = False, 1.0  # the checkpoint's network had neither
    for name in SETTINGS:
        parser[f"network_def::{name}"] = shape[name]
    return parser.get_parsed_content("network_def").eval()


def carry_over(weights: Mapping[str, torch.Tensor], denoiser: nn.Module) -> None:
    """Put the weights of monai-generative's network into the bundle's, in place.

    monai-generative defines ``proj_attn`` and never applies it; MONAI core applies it, so it becomes the identity.
    """
    from monai.networks.nets import DiffusionModelUNet

    weights = dict(weights)
    unet = denoiser.unet
    first = torch.zeros_like(unet.conv_in.conv.weight)
    first[:, :1] = weights["conv_in.conv.weight"][:, :1]
    weights["conv_in.conv.weight"] = first
    for name, value in weights.items():
        if name.endswith("proj_attn.weight"):
            weights[name] = torch.eye(len(value))
        elif name.endswith("proj_attn.bias"):
            weights[name] = torch.zeros_like(value)
    own = {name: value for name, value in unet.state_dict().items() if name.startswith("class_embedding.")}
    DiffusionModelUNet.load_old_state_dict(unet, weights | own)


@torch.no_grad()
def relative_difference(reference: nn.Module, denoiser: nn.Module, source: Path) -> float:
    """Return how far apart the two outputs are, over the norm of the reference's.

    The patches are random; conditions are zero. The two times are ones that t times 1000 gives back without rounding.
    InputError if the reference's output is zero everywhere, which proves nothing, or not finite.
    """
    generator = torch.Generator().manual_seed(0)
    edge = 2 * denoiser.stride
    steps = torch.tensor([250.0, 750.0])
    noisy = torch.randn(2, 1, *[edge] * denoiser.spatial_dims, generator=generator)
    images = [
        torch.cat([noisy, noisy.new_zeros(2, channels - 1, *noisy.shape[2:])], dim=1)
        for channels in (reference.conv_in.conv.in_channels, denoiser.unet.conv_in.conv.in_channels)
    ]
    expected = reference(images[0], steps)
    if not 0 < float(expected.norm()) < float("inf"):
        raise InputError(f"{source} predicts only zeros, as an untrained network does, or numbers that are not finite")
    return float((denoiser(images[1], steps / 1000) - expected).norm() / expected.norm())
