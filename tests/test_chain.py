"""The whole chain with the real bundles, tiny: phantom, dataset, augment inside compare, report."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from tools.compare import compare
from tools.dataset import dataset
from tools.phantom import phantom
from tools.report import report

SYNTHESIZER = {"max_epochs": 1, "epoch_length": 3, "batch_size": 2, "patches_per_case": 2, "patch_size": [32, 32, 1],
               "network_channels": [8, 16, 16], "warmup_steps": 1, "measured_patches": 64, "device": "cpu"}  # fmt: skip
SEGMENTER = {"batch_size": 4, "patch_size": 32, "device": "cpu"}


@pytest.mark.slow
def test_chain_from_nothing_to_a_report(tmp_path):
    phantom(output=tmp_path / "phantom", patients=6, size=(64, 64, 6))
    dataset(
        images=tmp_path / "phantom/images", labels=tmp_path / "phantom/labels", output=tmp_path / "dataset",
        patients=tmp_path / "phantom/patients.csv", folds=2,
    )  # fmt: skip
    compare(
        datalist=tmp_path / "dataset/datalist.json", output=tmp_path / "comparison", arms=("real", "synthetic"),
        folds=(0,), seeds=(0,), iterations=3, steps=2, max_cases=2, overrides=SEGMENTER,
        synthesis_overrides=SYNTHESIZER,
    )  # fmt: skip
    report(directory=tmp_path / "comparison", output=tmp_path / "report.html")

    results = pd.read_csv(tmp_path / "comparison/results.csv")
    assert set(results["arm"]) == {"real", "synthetic"}
    assert results["dice"].dropna().between(0, 1).all() and results["dice"].notna().sum() >= 6
    items = {item["patient"]: item for item in json.loads((tmp_path / "dataset/datalist.json").read_text())["training"]}
    assert {items[patient]["fold"] for patient in results["patient"]} == {0}

    augmented = next((tmp_path / "comparison/fold0").glob("augment*"))
    rows = [json.loads(line) for line in (augmented / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(items[row["patient"]]["fold"] == 1 for row in rows)
    for row in rows:
        if row["accepted"]:
            painted = np.asarray(nib.load(augmented / f"images/{row['case']}.nii.gz").dataobj)
            assert painted.dtype == np.int16
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") >= 1 and "http://" not in page.replace("http://www.w3.org", "")
