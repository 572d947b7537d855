"""A cohort, and a stand-in for the synthesizer's process, for the tests of `augment`."""

import json
from pathlib import Path

import pytest
import stand_in_painter

from tests.tools.fakes.augmented import write_case
from tools.io.files import read_json
from tools.tissues import tissue_labels
from tools.workflows import synthesizer


@pytest.fixture
def datalist(tmp_path):
    items = []
    for number in range(6):
        write_case(tmp_path / "cohort", f"case{number}", number)
        items.append({"image": f"images/case{number}.nii.gz", "label": f"labels/case{number}.nii.gz",
                      "fold": number % 3, "patient": f"p{number}", "age": 50 + number})  # fmt: skip
    path = tmp_path / "cohort/datalist.json"
    path.write_text(json.dumps({"name": "cohort", "labels": tissue_labels(), "training": items}))
    return path


@pytest.fixture
def stand_in(monkeypatch):
    """Replace the bundle's process: training writes weights, painting fills the region with the tissue's HU."""
    runs = []

    def run_bundle(bundle, configs, overrides, log, variables=None):
        runs.append((" ".join(configs), overrides))
        if configs[0] == "train.json":
            content = read_json(Path(overrides["dataset_dir"]) / "datalist.json")
            runs.append(("seen", [item["image"] for item in content["training"]]))
            stand_in_painter.run_bundle(bundle, configs, overrides, log, variables)
            return
        work = Path(overrides["dataset_dir"])
        runs.append(("told", (work / "conditions.csv").read_text()))
        stand_in_painter.run_bundle(bundle, configs, overrides, log, variables)

    monkeypatch.setattr(synthesizer, "run_bundle", run_bundle)
    return runs
