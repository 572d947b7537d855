"""A stand-in for the synthesizer's process: training writes weights, painting fills the region with the tissue's HU.

Dask loads this file into each worker of a test's cluster.
"""

from pathlib import Path

import nibabel as nib
import numpy as np

HU = np.array([0, 0, -600, -500, -950, 10])


def run_bundle(bundle, configs, overrides, log, variables=None):
    """Do what the bundle's process would."""
    if configs[0] == "train.json":
        (Path(overrides["model_dir"]) / "model.pt").write_bytes(b"weights")
        return
    work = Path(overrides["dataset_dir"])
    for path in sorted((work / "targets").iterdir()):
        image, label = nib.load(work / "images" / path.name), nib.load(work / "labels" / path.name)
        hu, target = image.get_fdata(dtype=np.float32), np.asarray(nib.load(path).dataobj)
        region = target != np.asarray(label.dataobj)
        noise = np.random.default_rng([overrides["seed"], *path.name.encode()]).normal(0, 30, hu.shape)
        hu[region] = (HU[target] + noise)[region].round()
        (work / "painted").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(hu, image.affine), work / "painted" / path.name)


def dask_setup(worker: object) -> None:
    """Put the stand-in where a worker finds the bundle."""
    from tools.workflows import synthesizer

    synthesizer.run_bundle = run_bundle
