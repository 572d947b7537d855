"""The Model Zoo's test of difflung_synthesis: its workflows on small invented cases.

Runs where models/difflung_synthesis is the bundle, as in the zoo, or with its folder in the variable BUNDLE_ROOT:
    python -m unittest test_difflung_synthesis
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
from scipy import ndimage

ROOT = Path(os.environ.get("BUNDLE_ROOT", "models/difflung_synthesis")).resolve()
HU = (40, -850, -600, -500, -960, 20)  # of each label
OVERRIDES = {
    **{"max_epochs": 1, "epoch_length": 2, "batch_size": 2, "patches_per_case": 2, "patch_size": [32, 32, 1]},
    **{"val_interval": 1, "network_channels": [16, 16], "measured_patches": 256, "warmup_steps": 1, "num_steps": 2},
}
INFERENCE = ("patch_size", "network_channels", "num_steps")


def write_cases(folder: Path) -> None:
    """Write four labelled CTs of lung with lesions, two in each fold, and maps with more ground glass to paint."""
    items = []
    for number in range(4):
        rng = np.random.default_rng(number)
        label = np.zeros((45, 39, 5), np.uint8)
        label[6:-6, 6:-6] = 1
        label[10:20, 10:30], label[25:33, 10:20], label[25:33, 22:30], label[20:25, 10:20] = 2, 3, 4, 5
        hu = np.asarray(HU)[label] + rng.normal(0, 40, label.shape)
        target = np.where(label == 1, 2, label).astype(np.uint8)
        for name, voxels in (("image", hu.astype(np.int16)), ("label", label), ("target", target)):
            (folder / f"{name}s").mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.diag([2, 2, 5, 1])), folder / f"{name}s/case{number}.nii.gz")
        files = {name: f"{name}s/case{number}.nii.gz" for name in ("image", "label")}
        items.append(files | {"fold": number % 2, "patient": f"patient{number}", "age": 50 + number})
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


class TestDiffLungSynthesis(unittest.TestCase):
    """The workflows, one after the other: each needs the weights of the first."""

    def setUp(self):
        sys.path.insert(0, str(ROOT))
        self.addCleanup(sys.path.remove, str(ROOT))
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        write_cases(self.folder)

    def test_workflows(self):
        places = {"dataset_dir": str(self.folder), "output_dir": str(self.folder / "output")}
        settings = OVERRIDES | places | {"model_dir": str(self.folder / "models")}
        painting = places | {"checkpoint": str(self.folder / "models/model.pt")}
        for files, kind, overrides in (
            (["train.json"], "train", settings),
            (["train.json", "evaluate.json"], "train", settings | {"samples": 1}),
            (["inference.json"], "infer", painting | {name: OVERRIDES[name] for name in INFERENCE}),
        ):
            with self.subTest(files=files):
                built = workflow(files, kind, **overrides)
                self.assertEqual(built.check_properties(), [])
                built.run()
                built.finalize()
        self.assertTrue((self.folder / "models/model.pt").is_file())
        self.assertTrue((self.folder / "output/quality.csv").is_file())
        for number in range(4):
            files = [self.folder / f"{name}/case{number}.nii.gz" for name in ("images", "labels", "targets", "output")]
            image, label, target, painted = (np.asarray(nib.load(file).dataobj) for file in files)
            changed = label != target
            near = ndimage.binary_dilation(changed, np.ones((5, 5, 1)))  # the region's margin is of two voxels
            self.assertTrue(np.array_equal(painted[~near], image[~near]))
            self.assertGreater(np.abs(painted[changed] - image[changed]).mean(), 1)


if __name__ == "__main__":
    unittest.main()
