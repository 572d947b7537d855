"""The Model Zoo's test of lung_tissue_seg: its workflows on small invented cases.

Runs where models/lung_tissue_seg is the bundle, as in the zoo, or with its folder in the variable BUNDLE_ROOT:
    python -m unittest test_lung_tissue_seg
"""

import json
import os
import sys
import tempfile
import unittest
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

ROOT = Path(os.environ.get("BUNDLE_ROOT", "models/lung_tissue_seg")).resolve()
HU = (40, -850, -600, -500, -960, 20)  # of each label
OVERRIDES = {
    **{"max_epochs": 1, "epoch_length": 2, "batch_size": 4, "patch_size": 32, "window_size": [32, 32]},
    **{"val_interval": 1, "network_channels": [4, 4, 4, 4, 4], "find_lung": False, "cache_rate": 0.0},
}
INFERENCE = ("window_size", "network_channels", "find_lung")


def write_cases(folder: Path) -> None:
    """Write four labelled CTs of blocks of tissue, two in each fold."""
    items = []
    for number in range(4):
        rng = np.random.default_rng(number)
        label = np.kron(rng.integers(0, 6, (6, 6, 2)), np.ones((8, 8, 3))).astype(np.uint8)
        hu = np.asarray(HU)[label] + rng.normal(0, 20, label.shape)
        for name, voxels in (("image", hu.astype(np.int16)), ("label", label)):
            (folder / f"{name}s").mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.5, 4, 1])), folder / f"{name}s/case{number}.nii.gz")
        files = {name: f"{name}s/case{number}.nii.gz" for name in ("image", "label")}
        items.append(files | {"fold": number % 2, "patient": f"patient{number}"})
    (folder / "datalist.json").write_text(json.dumps({"training": items}))


def workflow(files: list[str], kind: str, **overrides: object) -> ConfigWorkflow:
    """Return an initialized workflow of the bundle."""
    configs = ROOT / "configs"
    built = ConfigWorkflow(
        workflow_type=kind,
        config_file=[str(configs / name) for name in files],
        meta_file=str(configs / "metadata.json"),
        logging_file=str(configs / "logging.conf"),
        bundle_root=str(ROOT),
        **overrides,
    )
    built.initialize()
    return built


class TestLungTissueSeg(unittest.TestCase):
    """The workflows, one after the other: each needs the weights of the first."""

    def setUp(self):
        sys.path.insert(0, str(ROOT))
        self.addCleanup(sys.path.remove, str(ROOT))
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        write_cases(self.folder)

    def test_workflows(self):
        places = {name: str(self.folder / name) for name in ("model_dir", "output_dir")}
        settings = OVERRIDES | places | {"dataset_dir": str(self.folder)}
        for files, kind, overrides in (
            (["train.json"], "train", settings),
            (["train.json", "evaluate.json"], "train", settings),
            (
                ["inference.json"],
                "infer",
                places | {name: OVERRIDES[name] for name in INFERENCE} | {"dataset_dir": str(self.folder / "images")},
            ),
        ):
            with self.subTest(files=files):
                built = workflow(files, kind, **overrides)
                self.assertEqual(built.check_properties(), [])
                built.run()
                built.finalize()
        self.assertTrue((self.folder / "model_dir/model.pt").is_file())
        self.assertTrue((self.folder / "output_dir/scores.csv").is_file())
        for number in range(4):
            image = nib.load(self.folder / f"images/case{number}.nii.gz")
            labels = nib.load(self.folder / f"output_dir/case{number}_tissues.nii.gz")
            self.assertEqual(labels.shape, image.shape)
            self.assertLessEqual(set(np.unique(labels.dataobj)), set(range(6)))


if __name__ == "__main__":
    unittest.main()
