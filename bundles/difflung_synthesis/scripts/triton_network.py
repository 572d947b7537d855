"""A denoiser that a Triton Inference Server computes."""

import numpy as np
import torch

from .network import TissueDenoiser


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


class TritonDenoiser(TissueDenoiser):
    """Stands where :class:`TissueDenoiser` does when painting, in pixel space: its answers come from a server.

    Args:
        url: Host and port of the server's gRPC service.
        model_name: Name in the server's model repository.
        settings: Arguments of :class:`TissueDenoiser`.

    Raises:
        ConnectionError: If no such model is ready there.
        ImportError: If tritonclient is not installed.
        ValueError: If there is an autoencoder, whose weights the server does not hold.
    """

    def __init__(self, url: str, model_name: str, **settings) -> None:
        super().__init__(**settings)
        if self.autoencoder is not None:
            raise ValueError("a latent model cannot paint by Triton, which holds no autoencoder; paint with model.pt")
        self.grpc, self.client = connect(url, model_name)
        self.model_name = model_name

    @torch.no_grad()
    def forward(self, image, timesteps, attributes=None, interval=None) -> torch.Tensor:
        """Return the velocity, as :meth:`TissueDenoiser.forward` does."""
        if attributes is None:
            attributes = image.new_zeros(len(image), self.attribute_entries)
        if interval is None:
            interval = torch.zeros_like(timesteps)
        given = {
            "image": image,
            "timesteps": timesteps[:, None],
            "attributes": attributes,
            "interval": interval[:, None],
        }
        inputs = []
        for name, value in given.items():
            array = np.ascontiguousarray(value.float().cpu().numpy())
            inputs.append(self.grpc.InferInput(name, list(array.shape), "FP32"))
            inputs[-1].set_data_from_numpy(array)
        answer = self.client.infer(self.model_name, inputs).as_numpy("pred")
        return torch.tensor(answer, device=image.device)
