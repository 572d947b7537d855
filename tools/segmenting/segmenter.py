"""The segmenter's inference inside this process: a CT in memory in, its tissue map out, inside a known lung if any."""

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from torch import nn

from tools.bundles import BUNDLES
from tools.io.files import InputError, read_json
from tools.io.volume import slices_with
from tools.workflows.in_process import InProcess, metadata_tracked
from tools.workflows.origin import Weights, find_weights, read_state, trained_settings
from tools.workflows.segmenter import SEGMENTER


class WithoutBackground(nn.Module):
    """A network's logits with those of the background as low as can be: the likeliest tissue is lung everywhere."""

    def __init__(self, network: nn.Module, background: int) -> None:
        super().__init__()
        self.network, self.background = network, background

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (N, classes, ...)."""
        logits = self.network(image).float().clone()
        logits[:, self.background] = -torch.inf
        return logits


class Segmenter:
    """The segmenter's bundle, loaded once for several CTs.

    Args:
        weights: The file named by the user; the bundle's own if None.
        device: Device of the network; the bundle's own choice if None.
        flag: The flag by which a user names others, for messages.
        mirror: Whether answers are averaged over mirrored slices.

    Attributes:
        weights: The weights and their card.
        labels: Tissue name to value.

    Raises:
        InputError: if there are no weights, their card is missing or wrong, or they do not fit the bundle.
    """

    def __init__(
        self, weights: Path | None = None, device: str | None = None, flag: str = "--weights", mirror: bool = False
    ) -> None:
        self.weights: Weights = find_weights(SEGMENTER, weights, flag)
        root = BUNDLES / SEGMENTER
        settings = trained_settings(self.weights, read_json(root / "configs/inference.json"))
        self.labels = settings["labels"]
        check_outputs(self.weights.path, len(self.labels))
        self.bundle = InProcess(root, self.weights.path, device, settings)
        self.bundle.inferer.mirror = mirror

    @torch.inference_mode()
    def label(self, hu: np.ndarray, affine: np.ndarray, lung: np.ndarray | None = None) -> np.ndarray:
        """Return the tissue map of a CT.

        Args:
            hu: CT in HU, float32, shape (W, H, slices).
            affine: From its voxels to RAS in mm.
            lung: Where lung is, bool, the same shape: the map has the likeliest tissue there and nothing elsewhere. If
                None, the network says where lung is.

        Returns:
            Label values, uint8, shape (W, H, slices); all background where no lung is found.
        """
        bundle = self.bundle
        network, inferer = bundle.network, bundle.inferer
        find_lung = inferer.find_lung
        if lung is not None:
            network, inferer.find_lung = WithoutBackground(network, self.labels["background"]), False
            box = slices_with(lung, affine)
            answer = np.zeros(hu.shape, np.uint8)
            if box is None:
                return answer
            hu, affine = hu[box], affine @ nib.affines.from_matvec(np.eye(3), [part.start for part in box])
        try:
            image = MetaTensor(torch.from_numpy(np.ascontiguousarray(hu, np.float32))[None], affine=affine)
            with metadata_tracked(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that no lung was found shows in the map
                batch = list_data_collate([bundle.preprocessing({"image": image})])
                batch["pred"] = inferer(batch["image"].to(bundle.device), network)
                found = bundle.postprocessing(decollate_batch(batch)[0])["pred"][0].cpu().numpy().astype(np.uint8)
        finally:
            inferer.find_lung = find_lung
        if lung is None:
            return found
        answer[box] = np.where(lung[box], found, self.labels["background"])
        return answer


def check_outputs(path: Path, classes: int) -> None:
    """Raise InputError if weights cannot be read as a state dict, or tell another number of labels apart.

    Args:
        path: The file.
        classes: Number of labels of the bundle, background included.
    """
    vectors = [value for value in read_state(path).values() if isinstance(value, torch.Tensor) and value.ndim == 1]
    if not vectors:
        raise InputError(f"{path} holds no weights of {SEGMENTER}")
    if len(vectors[-1]) != classes:
        raise InputError(
            f"{path} tells {len(vectors[-1])} labels apart, but the bundles' scheme has {classes}; train anew with it"
        )
