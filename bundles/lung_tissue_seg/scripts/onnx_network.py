"""A network that onnxruntime computes."""

from pathlib import Path

import torch


class OnnxNetwork(torch.nn.Module):
    """Stands where the PyTorch network does.

    Args:
        path: ONNX file with one input and one output, whose sizes are dynamic.

    Raises:
        FileNotFoundError: If the file does not exist.
        ImportError: If onnxruntime is not installed.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; export it with python -m monai.bundle onnx_export")
        import onnxruntime  # needed by this overlay alone

        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        available = onnxruntime.get_available_providers()
        self.session = onnxruntime.InferenceSession(path, providers=[name for name in wanted if name in available])
        self.input = self.session.get_inputs()[0].name

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of images, shapes (N, 1, W, H) to (N, classes, W, H)."""
        (logits,) = self.session.run(None, {self.input: image.float().cpu().numpy()})
        return torch.from_numpy(logits).to(image.device)
