"""A drawn chest small enough for tests, and weights of both bundles that no training has seen."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from tools.bundles import BUNDLES, import_scripts, rename_targets
from tools.io.files import read_json, write_json
from tools.tissues import tissue_labels
from tools.workflows.in_process import ConfigParser

LABELS = tissue_labels()
SPACING = (3.0, 3.0, 6.0)
AFFINE = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
HU = np.array([40.0, -860, -600, -500, -950, 10])  # of each label value
SHAPE = (96, 80, 10)
SMALL = {"network_channels": [8, 16, 16], "patch_size": [32, 32, 1]}


def lungs() -> np.ndarray:
    """Return a map of two healthy lungs, axes to the patient's left, back and head as in most files."""
    x, y, _ = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    label = np.zeros(SHAPE, np.uint8)
    for middle in (26, 69):
        label[((x - middle) / 18) ** 2 + ((y - 40) / 28) ** 2 < 1] = LABELS["healthy"]
    label[..., [0, -1]] = 0
    return label


def chest(label: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the CT of a tissue map in whole HU, the air around the body included."""
    x, y, _ = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    body = ((x - 47.5) / 45) ** 2 + ((y - 40) / 36) ** 2 < 1
    hu = np.where(body | (label > 0), HU[label], -1000) + np.random.default_rng(seed).normal(0, 15, SHAPE)
    return hu.round().astype(np.int16)


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> Path:
    """Write an array as NIfTI and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def segmenter_weights(folder: Path, **card) -> Path:
    """Write random weights of the segmenter with a card, and return their path."""
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(read_json(BUNDLES / "lung_tissue_seg/configs/train.json"))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    write_json(folder / "card.json", {"trained_on": "nothing, they are random"} | card)
    return folder / "model.pt"


def synthesizer_weights(folder: Path, overrides: dict | None = None, **changes) -> Path:
    """Write weights of a small synthesizer that paints each tissue's HU, with a card, and return their path."""
    settings = read_json(BUNDLES / "difflung_synthesis/configs/inference.json") | SMALL | changes
    parser = ConfigParser()
    parser.read_config(rename_targets(settings, import_scripts(BUNDLES / "difflung_synthesis")))
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    if network.tissue_mean.shape[1] == len(HU) - 1:
        low, high = settings["hu_window"]
        scaled = torch.from_numpy(2 * (HU[1:] - low) / (high - low) - 1).float()
        network.tissue_mean.copy_(network.data_scale * scaled.view(1, -1, 1))
        network.tissue_deviation.fill_(0.1)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), folder / "model.pt")
    card = {"cases": [{"patient": "p0"}, {"patient": "p1"}], "overrides": SMALL | (overrides or {})}
    write_json(folder / "card.json", card)
    return folder / "model.pt"
