"""MONAI's Auto3DSeg reads our datalist.json: its analyser runs on it, and AutoRunner takes it with its folds."""

import json
import sys

import pytest
import yaml
from monai.apps.auto3dseg import AutoRunner
from monai.auto3dseg.utils import datafold_read

from tests.integrations.consumers import run
from tools.tissues import tissue_labels

STEPS = {"analyze": True, "algo_gen": False, "train": False, "ensemble": False}  # the next one downloads templates


def test_the_analyser_finds_the_cases_the_labels_and_hu(cohort, tmp_path):
    """As docs/serving.md says it: the task file, and AutoRunner up to the step that needs the network."""
    task = {"modality": "CT", "datalist": str(cohort / "datalist.json"), "dataroot": str(cohort)}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task | STEPS))
    run(sys.executable, "-m", "monai.apps.auto3dseg", "AutoRunner", "run", "--input", "task.yaml", cwd=tmp_path)
    found = yaml.safe_load((tmp_path / "work_dir/datastats.yaml").read_text())["stats_summary"]
    card = json.loads((cohort / "data_card.json").read_text())
    assert found["n_cases"] == card["cases"] == 8
    assert found["label_stats"]["labels"] == sorted(tissue_labels().values())
    assert found["image_stats"]["shape"]["max"] == card["shape"]["max"]
    for name, value in tissue_labels().items():
        if name in ("healthy", "ground_glass"):  # of which every patient has much
            median = found["label_stats"]["label"][value]["image_intensity"]["median"]
            assert median == pytest.approx(card["tissues"][name]["hu_quantiles"]["50"], abs=15)


def test_autorunner_takes_the_folds(cohort, tmp_path):
    task = {"modality": "CT", "datalist": str(cohort / "datalist.json"), "dataroot": str(cohort)}
    assert AutoRunner(str(tmp_path), task, **STEPS).num_fold == 2


@pytest.fixture
def augmented(cohort):
    """A datalist with a painted case of fold 0's training patients, as `augment` writes it."""
    content = json.loads((cohort / "datalist.json").read_text())
    source = next(item for item in content["training"] if item["fold"] == 1)
    painted = source | {"fold": -1, "synthetic": True, "source": "phantom"}
    content |= {"held_out_fold": 0, "training": [*content["training"], painted]}
    path = cohort / "augmented.json"
    path.write_text(json.dumps(content))
    yield path
    path.unlink()


def test_autorunner_takes_painted_cases_for_the_one_fold_they_are_for(augmented, tmp_path):
    task = {"modality": "CT", "datalist": str(augmented), "dataroot": str(augmented.parent)}
    with pytest.raises(ValueError, match="Fold numbers are not continuous from 0 to 1"):
        AutoRunner(str(tmp_path / "refused"), task, **STEPS)
    content = json.loads(augmented.read_text())
    for item in content["training"]:  # as docs/serving.md says it
        item["fold"] = int(item["fold"] != content["held_out_fold"])
    augmented.write_text(json.dumps(content))
    runner = AutoRunner(str(tmp_path / "taken"), task | {"num_fold": 1}, **STEPS)
    assert runner.num_fold == 1
    training, validation = datafold_read(runner.datalist_filename, str(augmented.parent), 0)
    assert sum(bool(item.get("synthetic")) for item in training) == 1
    assert not any(item.get("synthetic") for item in validation)
    assert not {item["patient"] for item in training} & {item["patient"] for item in validation}
