"""A small cohort for `augment`, and what is written of its painted cases."""

import json

import nibabel as nib
import numpy as np

AFFINE = np.diag([-2.0, 2.0, 8.0, 1.0])


def write_case(folder, name, seed, value=5):
    rng = np.random.default_rng(seed)
    x, y, _ = np.meshgrid(np.arange(64), np.arange(60), np.arange(6), indexing="ij")
    label = (((x - 32) / 26) ** 2 + ((y - 30) / 24) ** 2 < 1).astype(np.uint8)
    label[20 + seed : 34 + seed, 20:34, 1:4] = 2
    label[40:46, 20:28, 2:4] = value
    means = np.array([40, -860, -600, -500, -950, 10])
    hu = rng.normal(means[label], 30).round().astype(np.int16)
    for kind, array in (("images", hu), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), folder / kind / f"{name}.nii.gz")


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
