"""Six good cases in folders, which the tests of the dataset command use and damage."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tools.data.dataset import dataset
from tools.io.files import InputError
from tools.tissues import tissue_labels

LABELS = tissue_labels()
SHAPE = (7, 6, 3)
AFFINE = np.array([[-0.8, 0.1, 0, 30], [0.1, 0.7, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1]], float)


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def ct(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, -350, shape).astype(np.int16)


def tissue_map(*names: str) -> np.ndarray:
    values = np.array([LABELS[name] for name in ("background", "healthy", *names)], np.uint8)
    return np.resize(values, SHAPE)


class Data:
    """Six good cases in folders that tests damage."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.labels, self.output = root, root / "images", root / "labels", root / "out"
        for number in range(6):
            save(ct(number), self.image(number))
            save(tissue_map("ground_glass", "fibrosis", "emphysema", "consolidation"), self.label(number))

    def image(self, number: int) -> Path:
        return self.images / f"case{number}.nii.gz"

    def label(self, number: int) -> Path:
        return self.labels / f"case{number}.nii.gz"

    def csv(self, *lines: str, cases: range = range(6)) -> Path:
        path = self.root / "patients.csv"
        path.write_text("\n".join(lines or ["case,patient", *(f"case{number},p{number}" for number in cases)]) + "\n")
        return path

    def run(self, **flags) -> dict:
        """Run the command and return the datalist."""
        given = {"images": self.images, "labels": self.labels, "output": self.output, "folds": 3} | flags
        dataset(**given)
        return json.loads((Path(given["output"]) / "datalist.json").read_text())

    def card(self) -> dict:
        return json.loads((self.output / "data_card.json").read_text())

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}

    def refusal(self, **flags) -> str:
        """Return the message of a run that must fail; nothing may be written, changed or lost."""
        before, folders = self.files(), {path for path in self.root.rglob("*") if path.is_dir()}
        with pytest.raises(InputError) as caught:
            self.run(**flags)
        assert self.files() == before
        assert {path for path in self.root.rglob("*") if path.is_dir()} == folders
        return str(caught.value)
