"""One evaluation of the network as TorchScript and as ONNX, with all that painting gives it."""

from pathlib import Path

import torch

from .network import TissueDenoiser


def export(network: TissueDenoiser, checkpoint: str, torchscript: str, onnx: str) -> None:
    """Write the trained network as two files, in float32; both take any batch and any sides of whole cells.

    The inputs are ``image``, ``timesteps``, ``attributes`` and ``interval`` of :meth:`TissueDenoiser.forward`, the
    output is ``pred``. TorchScript is traced, since torch.jit.script does not accept MONAI's diffusion U-Net.

    Args:
        network: Network that takes the weights; on the CPU, since a trace keeps its device.
        checkpoint: File of its weights.
        torchscript: TorchScript file to write.
        onnx: ONNX file to write, with its weights inside.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: If the weights are those of another kind of network.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"{checkpoint} does not exist; train the network before it is exported")
    network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    network.eval()
    network.amp = False
    inputs = example(network)
    with torch.no_grad():
        torch.jit.trace(network, tuple(inputs.values()), check_trace=False).save(torchscript)
        batch, cell = torch.export.Dim("batch"), network.stride // network.downsampling
        sides = {2 + axis: cell * torch.export.Dim(f"cells_{axis}") for axis in range(network.spatial_dims)}
        shapes = {name: {0: batch} for name in inputs}
        shapes["image"] |= sides
        torch.onnx.export(
            network, tuple(inputs.values()), onnx, dynamo=True, external_data=False, dynamic_shapes=shapes,
            input_names=list(inputs), output_names=["pred"],
        )  # fmt: skip


def example(network: TissueDenoiser) -> dict[str, torch.Tensor]:
    """Return inputs of a batch of two, no two of whose sizes are alike: a frozen one would show."""
    cell = network.stride // network.downsampling
    sides = [(6 + 2 * axis) * cell for axis in range(network.spatial_dims)]
    return {
        "image": torch.rand(2, network.input_channels, *sides),
        "timesteps": torch.rand(2),
        "attributes": torch.rand(2, network.attribute_entries),
        "interval": torch.rand(2),
    }
