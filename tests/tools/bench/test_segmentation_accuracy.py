"""The comparison with nnU-Net: its dataset, the scores and their intervals, the whole with a stand-in for nnU-Net."""

import json
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from tools import __main__ as cli
from tools.bench import nnunet_runs, nnunet_worker, segmentation_accuracy
from tools.bench.segmentation_accuracy import NNUNET, OURS, PLAIN
from tools.data.datalist import Case, read_fold
from tools.io.files import InputError, RunError
from tools.phantom.phantom import phantom
from tools.tissues import tissue_labels

LABELS = tissue_labels()
# Acts as nnU-Net's interpreter: it prepares nothing, and its labels are those it was given to train on.
STAND_IN = """#!{python}
import json, shutil, sys
from pathlib import Path
if sys.argv[1] == "-c":
    sys.exit({code})
job = json.loads(Path(sys.argv[2]).read_text())
folder, directory = Path(job["folder"]), Path(job["directory"])
if job["task"] == "train":
    splits = json.loads((folder / "preprocessed" / "{dataset}" / "splits_final.json").read_text())
    (directory / "labels").mkdir()
    for case in splits[job["fold"]]["val"]:
        shutil.copy(folder / "raw" / "{dataset}" / "labelsTr" / (case + ".nii.gz"), directory / "labels")
done = {{"patch_size": [8, 8], "batch_size": 2}} if job["task"] == "prepare" else {{}}
(directory / "done.json").write_text(json.dumps(done))
"""


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array), np.diag([2.0, 2, 5, 1])), path)


def stand_in(folder, code=0):
    path = folder / "python"
    path.write_text(STAND_IN.format(python=sys.executable, code=code, dataset=nnunet_worker.DATASET))
    path.chmod(0o755)
    return path


def items_of(folder, labels):
    items = []
    for number, label in enumerate(labels):
        files = folder / f"images/{number}.nii.gz", folder / f"labels/{number}.nii.gz"
        save(files[0], np.full(label.shape, -800, np.int16))
        save(files[1], label)
        items.append(Case(*files, f"p{number // 2}", number % 2))
    return items


def test_dice_is_of_the_labelled_voxels_and_the_mean_of_a_patients_cases(tmp_path):
    label = np.zeros((4, 4, 2), np.uint8)
    label[0], label[1], label[2] = 1, 3, 255
    items = items_of(tmp_path, [label, label])
    answer = label.copy()
    answer[1, :2], answer[2] = 0, 3  # half of the fibrosis missed; nobody knows about the third plane
    save(tmp_path / "answers/0000_tissues.nii.gz", answer)
    save(tmp_path / "answers/other.nii.gz", np.where(label == 255, 0, label))
    rows = segmentation_accuracy.score(items, tmp_path / "answers", {items[1].image: "other"}, LABELS)
    found = {(row["patient"], row["tissue"]): row["dice"] for row in rows}
    assert found == {("p0", "healthy"): 1.0, ("p0", "fibrosis"): pytest.approx((2 / 3 + 1) / 2)}


def test_missing_and_misshapen_answers_are_told(tmp_path):
    items = items_of(tmp_path, [np.ones((4, 4, 2), np.uint8)])
    with pytest.raises(RunError, match="lacks 0000_tissues.nii.gz, the labels of"):
        segmentation_accuracy.score(items, tmp_path, {}, LABELS)
    save(tmp_path / "0000_tissues.nii.gz", np.ones((4, 4, 1), np.uint8))
    with pytest.raises(RunError, match=r"has shape \(4, 4, 1\), its label \(4, 4, 2\)"):
        segmentation_accuracy.score(items, tmp_path, {}, LABELS)


def test_differences_are_paired_and_the_mean_is_over_the_pathological_tissues():
    rng, rows = np.random.default_rng(0), []
    for patient in range(30):
        level = rng.uniform(0.2, 0.6)
        for tissue, gain in (("healthy", 0.0), ("fibrosis", 0.1), ("emphysema", 0.2)):
            if tissue != "emphysema" or patient % 3 == 0:
                for method in (OURS, PLAIN, NNUNET):
                    dice = level + (gain if method == OURS else 0) + rng.normal(0, 0.01)
                    rows.append({"patient": f"p{patient}", "tissue": tissue, "method": method, "dice": dice})
    found = {row["tissue"]: row for row in segmentation_accuracy.summarise(rows)}
    assert [*found] == ["healthy", "fibrosis", "emphysema", "mean of the pathological"]
    assert found["emphysema"]["patients"] == 10 and found["healthy"]["patients"] == 30
    table = pd.DataFrame(rows)
    expected = table[(table.method == NNUNET) & (table.tissue == "fibrosis")].dice.mean()
    assert found["fibrosis"]["dice"][NNUNET] == pytest.approx(expected)
    for tissue, gain in (("healthy", 0), ("fibrosis", 0.1), ("emphysema", 0.2), ("mean of the pathological", 0.15)):
        mean, low, high = found[tissue]["difference"][NNUNET]
        assert low < mean < high and mean == pytest.approx(gain, abs=0.01)
        assert high - low < 0.03, "pairs share the patient's level, which the interval must not hold"


def test_interval_has_its_level():
    """Of 100 samples of 20 patients about 5 have an interval without the truth; a percentile interval a few more."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(100):
        _, low, high = segmentation_accuracy.interval(rng.normal(0.1, 0.2, (20, 1)))
        missed += not low < 0.1 < high
    assert 1 <= missed <= 14


def test_interval_is_that_of_patients_drawn_with_all_their_tissues():
    rng = np.random.default_rng(1)
    values = rng.normal(0.1, 0.2, (15, 1)) + rng.normal(0, 0.05, (15, 3))  # tissues of a patient go together
    values[2:, 2] = np.nan
    values[0, 0] = np.nan
    found = segmentation_accuracy.interval(values)
    samples = [values[rng.integers(15, size=15)] for _ in range(20_000)]
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning, match="empty slice"):
        means = [np.nanmean(np.nanmean(sample, axis=0)) for sample in samples]
    assert found == pytest.approx([np.nanmean(values, axis=0).mean(), *np.quantile(means, [0.025, 0.975])], abs=0.006)
    apart = np.sqrt(np.nansum(np.nanvar(values, axis=0) / np.isfinite(values).sum(axis=0))) / 3
    assert found[2] - found[1] > 1.3 * 2 * 1.96 * apart, "an interval of tissues drawn apart is too short"


def test_a_single_patient_has_no_interval():
    assert segmentation_accuracy.interval(np.array([[0.25, 0.75]])) == [0.5, 0.5, 0.5]


def test_nnunets_dataset_holds_our_maps_with_unlabelled_voxels_ignored(tmp_path):
    label = np.zeros((4, 4, 2), np.uint8)
    label[0], label[1], label[2] = 1, 5, 255
    items = items_of(tmp_path / "ours", [label, label, label])
    plan = nnunet_runs.prepare(tmp_path, stand_in(tmp_path), {"labels": LABELS, "training": items}, [0, 1], 128)
    assert plan == {"patch_size": [8, 8], "batch_size": 2}
    raw = tmp_path / "raw" / nnunet_worker.DATASET
    description = json.loads((raw / "dataset.json").read_text())
    assert description["labels"] == LABELS | {"ignore": 6} and description["numTraining"] == 3
    np.testing.assert_array_equal(nib.load(raw / "labelsTr/0001.nii.gz").dataobj, np.where(label == 255, 6, label))
    np.testing.assert_array_equal(nib.load(raw / "imagesTr/0001_0000.nii.gz").affine, np.diag([2.0, 2, 5, 1]))
    splits = json.loads((tmp_path / "preprocessed" / nnunet_worker.DATASET / "splits_final.json").read_text())
    assert splits == [{"train": ["0001"], "val": ["0000", "0002"]}, {"train": ["0000", "0002"], "val": ["0001"]}]


def test_a_step_too_small_to_plan_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a step of 100 voxels is too small for nnU-Net; allow 2048 at least"):
        nnunet_worker.prepare(tmp_path, 100)


def test_a_python_without_nnunet_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot import nnunetv2"):
        nnunet_runs.check(stand_in(tmp_path, code=1))
    with pytest.raises(InputError, match="cannot be started"):
        nnunet_runs.check(tmp_path / "nothing")


def test_a_failing_job_is_told_with_its_log(tmp_path):
    broken = tmp_path / "python"
    broken.write_text(f"#!{sys.executable}\nraise MemoryError('too large')\n")
    broken.chmod(0o755)
    with pytest.raises(RunError, match="nnU-Net failed: MemoryError: too large; its log is"):
        nnunet_runs.run_job(broken, tmp_path / "job", {"task": "train"})


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--datalist", "d.json"], 2, "bench_accuracy needs --nnunet"),
        (["--datalist", "d.json", "--nnunet", "p"], 1, "d.json does not exist"),
    ],
)
def test_wrong_calls_are_refused(tmp_path, capsys, words, code, told):
    assert cli.main(["bench_accuracy", *words, "--output", str(tmp_path / "out.json")]) == code
    assert told in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.slow
def test_methods_are_trained_on_the_same_folds_and_compared(tmp_path, capsys):
    phantom(output=tmp_path / "phantom", patients=4, size=(64, 64, 8))
    folders = {kind: str(tmp_path / "phantom" / kind) for kind in ("images", "labels")}
    dataset = tmp_path / "dataset"
    words = [word for kind, folder in folders.items() for word in (f"--{kind}", folder)]
    assert cli.main(["dataset", *words, "--folds", "2", "--output", str(dataset)]) == 0
    command = ["bench_accuracy", "--datalist", str(dataset / "datalist.json"), "--folds", "1", "--device", "cpu"]
    command += ["--nnunet", str(stand_in(tmp_path)), "--output", str(tmp_path / "out.json"), "--steps"]
    assert cli.main([*command, "30"]) == 1 and "steps must be a multiple of 25" in capsys.readouterr().err
    assert cli.main([*command, "25"]) == 0
    assert "minus nnU-Net" in capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    held_out = {case.patient for case in read_fold(dataset / "datalist.json", 1)[1]}
    assert {row["patient"] for row in result["rows"]} == held_out
    healthy = next(row for row in result["tissues"] if row["tissue"] == "healthy")
    assert healthy["dice"][NNUNET] == 1.0, "the stand-in knows the truth"
    assert healthy["difference"][NNUNET][0] == pytest.approx(healthy["dice"][OURS] - 1)
    labels = tmp_path / "out/fold1/segmenter/labels"
    (labels / "0000_tissues.nii.gz").unlink()
    assert cli.main([*command, "25"]) == 0, "what is finished is not done again"
    assert cli.main([*command, "50"]) == 1 and "a run with other settings" in capsys.readouterr().err
