"""A network that a Triton Inference Server computes."""

import numpy as np
import torch


def connect(url: str, model_name: str) -> tuple:
    """Return tritonclient's gRPC module and its client of a server that has a model ready.

    Raises:
        ConnectionError: If no such model is ready there.
        ImportError: If tritonclient is not installed.
    """
    from tritonclient import grpc  # needed by this overlay alone

    client = grpc.InferenceServerClient(url)
    try:
        ready = client.is_model_ready(model_name)
    except grpc.InferenceServerException as error:
        raise ConnectionError(f"no Triton server answers at {url} by gRPC: {error.message()}") from None
    if not ready:
        raise ConnectionError(f"the Triton server at {url} has no model {model_name} ready")
    return grpc, client


class TritonNetwork(torch.nn.Module):
    """Stands where the PyTorch network does.

    Args:
        url: Host and port of the server's gRPC service.
        model_name: Name in the server's model repository.

    Raises:
        ConnectionError: If no such model is ready there.
        ImportError: If tritonclient is not installed.
    """

    def __init__(self, url: str, model_name: str) -> None:
        super().__init__()
        self.grpc, self.client = connect(url, model_name)
        self.model_name = model_name

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of images, shapes (N, 1, W, H) to (N, classes, W, H)."""
        array = np.ascontiguousarray(image.float().cpu().numpy())
        given = self.grpc.InferInput("image", list(array.shape), "FP32")
        given.set_data_from_numpy(array)
        answer = self.client.infer(self.model_name, [given]).as_numpy("pred")
        return torch.tensor(answer, device=image.device)
