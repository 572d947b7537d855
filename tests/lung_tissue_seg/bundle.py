"""What the tests of the segmenter share: its folder, a small cohort, and running it as a user runs it."""

import csv
import importlib
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

BUNDLE = Path(__file__).resolve().parents[2] / "bundles/lung_tissue_seg"
CONFIGS = BUNDLE / "configs"
SCHEMA = Path(__file__).resolve().parents[3] / "shared/meta_schema_20240725.json"
WORKFLOWS = {
    "train": ["train"],
    "evaluate": ["train", "evaluate"],
    "inference": ["inference"],
    "torchscript": ["inference", "inference_torchscript"],
    "onnx": ["inference", "inference_onnx"],
    "tensorrt": ["inference", "inference_trt"],
    "triton": ["inference", "inference_triton"],
    "volume": ["train", "volume"],
    "whole_slices": ["train", "whole_slices"],
    "kernels": ["train", "kernels"],
    "fine_tune": ["train", "fine_tune"],
    "multi_gpu_train": ["train", "multi_gpu_train"],
    "multi_gpu_evaluate": ["train", "evaluate", "multi_gpu_evaluate"],
}
TINY = {
    **{"device": "cpu", "patch_size": 32, "window_size": [32, 32], "network_channels": [4, 4, 4, 4, 4]},
    **{"find_lung": False},
    **{"batch_size": 4, "max_epochs": 1, "epoch_length": 2, "val_interval": 1},
}
# Shape, voxel size in mm and order of the axes; odd sizes, one single slice, every axis somewhere flipped.
CASES = [((43, 37, 7), (1.3, 1.1, 3.0), (0, 1, 2)), ((31, 45, 1), (1.7, 1.7, 5.0), (1, 0, 2)),
         ((9, 40, 35), (4.0, 1.2, 1.4), (2, 0, 1)), ((40, 40, 6), (2.0, 2.0, 4.0), (0, 1, 2))]  # fmt: skip
HU = [-1000, -850, -600, -300, -950, 50]


def write_cohort(folder: Path) -> list[Path]:
    """Write four tiny labelled CTs with oblique affines; only the last has consolidation, and it is never validated."""
    folder.mkdir(parents=True)
    items, images = [], []
    for number, (shape, spacing_mm, axes) in enumerate(CASES):
        rng = np.random.default_rng(number)
        blocks = rng.integers(0, 5, [-(-size // 6) for size in shape])
        label = np.kron(blocks, np.ones((6, 6, 6), int))[: shape[0], : shape[1], : shape[2]].astype(np.uint8)
        if number == 3:
            label[:6, :6, :3] = 5
        hu = np.asarray(HU)[label] + rng.normal(0, 20, shape)
        a, b = 0.3 * number + 0.1, 0.2
        rotation = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
        rotation = rotation @ np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
        affine = np.eye(4)
        affine[:3, :3] = rotation[:, list(axes)] @ np.diag(np.array(spacing_mm) * [-1, -1, 1])
        affine[:3, 3] = [10, -20.5, 300.25]
        images.append(folder / "images" / f"case{number}.nii.gz")
        mask = folder / "labels" / f"case{number}.nii.gz"
        for path, data in ((images[-1], hu.astype(np.int16)), (mask, label)):
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(data, affine), path)
        item = {"image": f"images/case{number}.nii.gz", "label": f"labels/case{number}.nii.gz", "patient": f"p{number}"}
        extra = {"age": None, "history": "smoker"} if number % 2 else {"synthetic": True}
        items.append(item | extra | {"fold": [0, 0, 1, -1][number]})
    (folder / "datalist.json").write_text(json.dumps({"labels": {}, "training": items}))
    return images


def config(name: str) -> Path:
    """Return a config file; variants are YAML."""
    return next(CONFIGS.glob(f"{name}.*"))


def run(command: list[str], names: list[str], cwd: Path, launcher: tuple = (), check: bool = True, **overrides):
    """Run the bundle in a process of its own, from another folder."""
    files = [str(config(name)) for name in names]
    line = [sys.executable, *launcher, "-m", "monai.bundle", *command, "--bundle_root", str(BUNDLE)]
    line += ["--config_file", files[0] if len(files) == 1 else str(files)]
    for key, value in overrides.items():
        line += [f"--{key}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, env=environment)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def workflow(name: str, kind: str, **overrides) -> ConfigWorkflow:
    """Return one of the bundle's workflows, not yet initialized."""
    files = [str(config(part)) for part in WORKFLOWS[name]]
    return ConfigWorkflow(files, workflow_type=kind, logging_file=False, bundle_root=str(BUNDLE), **overrides)


def read_rows(path: Path) -> dict[str, list[float]]:
    """Return file name to Dice per tissue."""
    with open(path, newline="") as file:
        return {Path(row[0]).name: [float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]}


def ids(config, prefix: str = "") -> list[tuple[str, str]]:
    """Return every string of a config with its id."""
    if isinstance(config, str):
        return [(prefix, config)]
    entries = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    return [pair for key, value in entries for pair in ids(value, f"{prefix}::{key}" if prefix else str(key))]


def load(name):
    """Return a script of the segmenter, whose package has the name of the synthesizer's."""
    package = types.ModuleType("segmenter_scripts")  # so that they find each other
    package.__path__ = [str(BUNDLE / "scripts")]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"segmenter_scripts.{name}")
