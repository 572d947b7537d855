"""What stands in for Triton's backends ``onnxruntime`` and ``pytorch``, which are not to be had from PyPI.

Triton calls it a Python-based backend: the server loads this file in the place of the backend's library; the models of
a repository stay as they are. It computes with the same libraries, onnxruntime and PyTorch.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import triton_python_backend_utils as triton


class TritonPythonModel:
    """A model of the repository, as Triton's Python backend wants it."""

    @staticmethod
    def auto_complete_config(config):
        """Return the configuration: it is complete."""
        return config

    def initialize(self, args: dict) -> None:
        """Load the model's file.

        Args:
            args: of Triton: the model's configuration as JSON, its folder and version.
        """
        config = json.loads(args["model_config"])
        self.inputs = [entry["name"] for entry in config["input"]]
        (self.output,) = [entry["name"] for entry in config["output"]]
        path = str(Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"])
        if config["backend"] == "onnxruntime":
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            self.compute = lambda arrays: session.run([self.output], dict(zip(self.inputs, arrays)))[0]
        else:
            module = torch.jit.load(path, map_location="cpu")
            self.compute = lambda arrays: module(*map(torch.from_numpy, arrays)).numpy()

    @torch.no_grad()
    def execute(self, requests: list) -> list:
        """Answer what the scheduler has put into one batch, in one call of the network."""
        given = [
            [triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs] for request in requests
        ]
        answers = self.compute([np.concatenate(arrays) for arrays in zip(*given)])
        ends = np.cumsum([len(arrays[0]) for arrays in given])[:-1]
        return [triton.InferenceResponse([triton.Tensor(self.output, part)]) for part in np.split(answers, ends)]
