"""The Model Zoo's test of lung_tissue_seg in several processes: one per GPU, or two on the CPU where there is none.

python -m unittest test_lung_tissue_seg_dist
"""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from test_lung_tissue_seg import OVERRIDES, ROOT, write_cases

PROCESSES = torch.cuda.device_count() or 2


def launch(run_id: str, names: list[str], **overrides: object) -> None:
    """Run a workflow of the bundle by torchrun."""
    configs = ROOT / "configs"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
    command += ["-m", "monai.bundle", "run", run_id, "--bundle_root", str(ROOT)]
    command += ["--config_file", str([str(configs / name) for name in names])]
    command += ["--meta_file", str(configs / "metadata.json"), "--logging_file", str(configs / "logging.conf")]
    for key, value in overrides.items():
        command += [f"--{key}", str(value)]
    subprocess.run(command, check=True)


class TestLungTissueSegDist(unittest.TestCase):
    """Training and evaluation under their overlays."""

    def test_workflows(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_cases(folder)
            places = {"dataset_dir": folder, "model_dir": folder / "models", "output_dir": folder / "eval"}
            overrides = OVERRIDES | places
            launch("training", ["train.json", "multi_gpu_train.json"], **overrides)
            self.assertTrue((folder / "models/model.pt").is_file())
            launch("evaluating", ["train.json", "evaluate.json", "multi_gpu_evaluate.json"], **overrides)
            self.assertTrue((folder / "eval/scores.csv").is_file())


if __name__ == "__main__":
    unittest.main()
