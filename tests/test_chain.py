"""The whole chain with the real bundles, tiny: phantom, dataset, augment inside compare, report."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from tools.comparison.compare import compare
from tools.data.dataset import dataset
from tools.painting.replay import replay
from tools.phantom.phantom import phantom
from tools.report.report import report

SYNTHESIZER = {"max_epochs": 1, "epoch_length": 3, "batch_size": 2, "patches_per_case": 2, "patch_size": [32, 32, 1],
               "network_channels": [8, 16, 16], "warmup_steps": 1, "measured_patches": 64, "device": "cpu"}  # fmt: skip
SEGMENTER = {"batch_size": 4, "patch_size": 32, "device": "cpu", "network_channels": [4, 8]}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    phantom(output=folder / "phantom", patients=6, size=(64, 64, 6))
    dataset(
        images=folder / "phantom/images", labels=folder / "phantom/labels", output=folder / "dataset",
        patients=folder / "phantom/patients.csv", folds=2,
    )  # fmt: skip
    return folder / "dataset/datalist.json"


@pytest.mark.slow
def test_chain_from_nothing_to_a_report_and_a_case_painted_again(datalist, tmp_path):
    compare(
        datalist=datalist, output=tmp_path / "comparison", arms=("real", "cbmat", "cbmat_filter"),
        folds=(0,), seeds=(0,), iterations=3, steps=2, max_cases=2, overrides=SEGMENTER,
        synthesis_overrides=SYNTHESIZER, external=datalist_of_strangers(tmp_path),
    )  # fmt: skip
    report(directory=tmp_path / "comparison", output=tmp_path / "report.html")

    results = pd.read_csv(tmp_path / "comparison/results.csv")
    assert set(results["arm"]) == {"real", "cbmat", "cbmat_filter"} and set(results["test"]) == {"own", "external"}
    assert results["dice"].dropna().between(0, 1).all() and results["dice"].notna().sum() >= 6
    items = {item["patient"]: item for item in json.loads(datalist.read_text())["training"]}
    own = results[results["test"] == "own"]
    assert {items[patient]["fold"] for patient in own["patient"]} == {0}

    augmented = next((tmp_path / "comparison/fold0").glob("augment_*/"))
    rows = [json.loads(line) for line in (augmented / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(items[row["patient"]]["fold"] == 1 for row in rows)
    assert all(tissue["recall"] is not None for row in rows for tissue in row["checks"].values())
    for row in rows:
        painted = np.asarray(nib.load(augmented / f"images/{row['case']}.nii.gz").dataobj)
        assert painted.dtype == np.int16
    replay(augmented / "manifest.jsonl", rows[1]["case"], tmp_path / "again.nii.gz")
    again = (tmp_path / "again.nii.gz").read_bytes()
    assert again == (augmented / f"images/{rows[1]['case']}.nii.gz").read_bytes()
    page = (tmp_path / "report.html").read_text()
    assert "Target maps beside the lesions of the training patients" in page and "distance to the pleura, mm" in page
    assert page.count("<img") >= 1 and "http://" not in page.replace("http://www.w3.org", "")


def datalist_of_strangers(folder: Path) -> Path:
    phantom(output=folder / "strangers", patients=2, seed=9, size=(64, 64, 6))
    dataset(images=folder / "strangers/images", labels=folder / "strangers/labels", output=folder / "external", folds=2)
    content = json.loads((folder / "external/datalist.json").read_text())
    for item in content["training"]:
        item["patient"] = f"stranger {item['patient']}"
    (folder / "external/datalist.json").write_text(json.dumps(content))
    return folder / "external/datalist.json"


@pytest.mark.slow
def test_a_comparison_killed_at_random_moments_ends_with_the_same_table(datalist, tmp_path):
    command = [sys.executable, "-m", "tools", "compare", "--datalist", str(datalist), "--arms", "real,copy_paste",
               "--folds", "0", "--seeds", "0,1", "--iterations", "3", "--max_cases", "2",
               "--overrides", json.dumps(SEGMENTER)]  # fmt: skip
    subprocess.run([*command, "--output", str(tmp_path / "whole")], check=True, capture_output=True)
    killed, chance = 0, random.Random(time.time_ns())
    for seconds in (chance.uniform(2, 12) for _ in range(3)):
        process = subprocess.Popen([*command, "--output", str(tmp_path / "killed")], start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    assert killed, "the comparison was over before it could be killed"
    subprocess.run([*command, "--output", str(tmp_path / "killed")], check=True, capture_output=True)
    for name in ("results.csv", "fold0/augment_copy_paste/manifest.jsonl"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    rows = [json.loads((tmp_path / name / "summary.json").read_text())["rows"] for name in ("whole", "killed")]
    assert rows[0] == rows[1]
    shutil.rmtree(tmp_path / "killed")
