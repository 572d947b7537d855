"""The comparison with a stand-in segmenter and a stand-in synthesizer: what is trained on what, leaks, resuming."""

import csv
import json
import sys
import types

import nibabel as nib
import numpy as np
import pytest

from tools import arms, compare, results
from tools.files import InputError, read_json, write_json
from tools.scheme import tissue_labels

LABELS = tissue_labels()
TISSUES = [name for name in LABELS if name != "background"]
GAIN = {"real": 0.0, "oversampled": 0.05, "copy_paste": 0.0, "synthetic": 0.1, "synthetic_oversampled": 0.1}


def save(array, path, size=0.7):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([size, size, 5.0, 1.0])), path)


def make_case(folder, case, values, size=0.7):
    label = np.ones((8, 8, 2), np.int16)
    for row, value in enumerate(values):
        label[row] = value
    save(label, folder / "labels" / f"{case}.nii.gz", size)
    save(np.full((8, 8, 2), -800, np.int16), folder / "images" / f"{case}.nii.gz", size)
    return {"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz"}


@pytest.fixture
def datalist(tmp_path):
    """Twelve patients with two cases each in two folds; consolidation in one patient of each fold only."""
    folder, items = tmp_path / "data", []
    for number in range(12):
        values = [2, 3, 4, 5] if number < 2 else [2, 3, 4]
        for visit in range(2):
            case = make_case(folder, f"case{number:02d}{'ab'[visit]}", values, size=0.6 if number % 2 else 0.8)
            items.append(case | {"fold": number % 2, "patient": f"p{number:02d}"})
    write_json(folder / "datalist.json", {"labels": LABELS, "training": items})
    return folder / "datalist.json"


class Standin:
    """Stands in for tools.augment and for tools.bundle, and remembers what it was asked to do."""

    def __init__(self):
        self.trained, self.augmented, self.dies_at = [], [], None
        self.fitted_on = {}  # planted, added to what was fitted on the training patients
        self.held_out, self.planted_items, self.donor = None, [], None
        self.accepts = True

    def augment(self, datalist, fold, output, balance, steps, max_cases, seed, method, overrides):
        if (output / "datalist.json").is_file():
            return
        self.augmented.append((fold, method, seed))
        real = arms.read_datalist(datalist)
        train, test = arms.split(real, fold)
        source = train[0]
        new = make_case(output, f"painted_{method}", [5, 5])
        new |= {"fold": -1, "patient": source["patient"], "synthetic": True}
        new["source"] = source["image"].split("/")[-1].removesuffix(".nii.gz")
        names = arms.patients(train)
        content = {
            "labels": real["labels"],
            "held_out_fold": fold if self.held_out is None else self.held_out,
            "fitted_on": {"synthesizer": names, "masks": names, "tissue_frequencies": names} | self.fitted_on,
            "training": [item | {"fold": -1} for item in train] + [new] * self.accepts + self.planted_items + test,
        }
        line = {"case": f"painted_{method}", "source": new["source"], "tissues": ["consolidation"], "accepted": True}
        line["donors"] = [{"case": self.donor or new["source"]}]
        (output / "manifest.jsonl").write_text(json.dumps(line) + "\n")
        write_json(output / "datalist.json", content)

    def run_bundle(self, bundle, config_files, overrides, log):
        assert (bundle, config_files) == ("lung_tissue_seg", ["train.json"])
        folder = log.parent
        if self.dies_at == len(self.trained):
            self.dies_at = None
            (folder / "model.pt").write_text("half")
            raise KeyboardInterrupt
        self.trained.append(folder.relative_to(folder.parents[2]).as_posix())
        content = read_json(overrides["datalist"])
        test = [item for item in content["training"] if item["fold"] == overrides["fold"]]
        for item in content["training"]:
            assert (folder / item["image"]).is_file() and (folder / item["label"]).is_file()
        with open(folder / results.DICE_FILE, "w") as stream:
            print(",".join(["filename", *TISSUES, "mean"]), file=stream)
            for item in test:
                number = int(item["patient"][1:])
                dice = [0.5 + 0.01 * number + 0.001 * tissue for tissue in range(len(TISSUES))]
                dice[TISSUES.index("fibrosis")] += GAIN[folder.name] + (
                    0.02 if item["image"].endswith("b.nii.gz") else 0
                )
                if number >= 2:
                    dice[TISSUES.index("consolidation")] = float("nan")
                print(
                    ",".join(map(str, [str((folder / item["image"]).resolve()), *dice, np.nanmean(dice)])), file=stream
                )
        self.last = overrides


@pytest.fixture
def standin(monkeypatch):
    standin = Standin()
    bundle = types.SimpleNamespace(run_bundle=standin.run_bundle, check_overrides=lambda *_: None)
    monkeypatch.setitem(sys.modules, "tools.bundle", bundle)
    monkeypatch.setitem(sys.modules, "tools.augment", types.SimpleNamespace(augment=standin.augment))
    return standin


def test_all_arms_run_and_the_known_gain_is_called_a_gain(datalist, standin, tmp_path, capsys):
    output = tmp_path / "out"
    compare.compare(datalist, output, iterations=100)
    assert len(standin.trained) == 2 * 2 * 4
    assert sorted(standin.augmented) == [(fold, method, 0) for fold in (0, 1) for method in ("copy_paste", "diffusion")]
    verdicts = {(row["tissue"], row["arm"]): row.get("verdict") for row in read_json(output / "summary.json")["rows"]}
    assert verdicts["fibrosis", "synthetic"] == verdicts["fibrosis", "oversampled"] == "gain"
    assert verdicts["fibrosis", "copy_paste"] == verdicts["emphysema", "synthetic"] == "no gain"
    assert verdicts["consolidation", "synthetic"] == "too few patients (2)"
    with open(output / "results.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["fold", "seed", "arm", "patient", "tissue", "dice"]
    assert len(rows) == 4 * 2 * 12 * len(TISSUES)
    one = next(row for row in rows if (row["patient"], row["tissue"], row["arm"]) == ("p04", "fibrosis", "real"))
    assert float(one["dice"]) == pytest.approx(0.5 + 0.04 + 0.002 + 0.01)  # the two cases of a patient are averaged
    assert next(row for row in rows if (row["patient"], row["tissue"]) == ("p04", "consolidation"))["dice"] == ""
    printed = capsys.readouterr().out
    assert "run 3 of 16: fold 0, seed 0, arm copy_paste" in printed
    assert f"python -m tools report --directory {output}" in printed
    assert "too few patients (2)" in printed


def test_train_and_test_patients_are_disjoint_in_every_stage_of_every_run(datalist, standin, tmp_path):
    output = tmp_path / "out"
    compare.compare(datalist, output, seeds=0, iterations=10)
    found = sorted(output.glob("fold*/seed*/*"))
    assert len(found) == 8
    for folder in found:
        result, own = read_json(folder / "result.json"), read_json(folder / "datalist.json")
        test = {item["patient"] for item in own["training"] if item["fold"] == result["fold"]}
        train = {item["patient"] for item in own["training"] if item["fold"] != result["fold"]}
        assert test == set(result["test_patients"]) and train == set(result["train_patients"])
        assert len(test) == 6 and len(train) == 6 and not test & train
        stages = {"segmenter"} | (
            {"synthesizer", "masks", "tissue_frequencies"} if result["synthetic_items"] else set()
        )
        assert set(result["fitted_on"]) == stages
        assert all(not test & set(names) for names in result["fitted_on"].values())


@pytest.mark.parametrize("stage", ["synthesizer", "masks", "tissue_frequencies", "a_filter_of_tomorrow"])
def test_a_planted_leak_is_refused_with_stage_and_patients(datalist, standin, tmp_path, stage):
    standin.fitted_on = {stage: ["p01", "p04", "p02"]}  # p02 and p04 lie in fold 0
    with pytest.raises(InputError, match=rf"arm synthetic, fold 0: stage {stage} was fitted on test patients p02, p04"):
        compare.compare(datalist, tmp_path / "out", arms="real,synthetic", folds=0, seeds=0, iterations=1)
    assert standin.trained == ["fold0/seed0/real"]


def test_a_painted_test_case_is_refused_under_any_patient_name(datalist, standin, tmp_path):
    real = arms.read_datalist(datalist)
    leaked = next(item for item in real["training"] if item["patient"] == "p04")
    for planted, message in (
        (leaked | {"fold": -1}, "stage segmenter was fitted on test patients p04"),
        (leaked | {"fold": -1, "patient": "p01", "synthetic": True}, "is both a training and a test file"),
        (
            real["training"][2] | {"fold": -1, "synthetic": True, "source": "case04a"},
            "synthetic cases were made of test patients p04",
        ),
        (real["training"][2] | {"fold": 0, "synthetic": True, "patient": "p04"}, "both a training and a test|differ"),
    ):
        standin.planted_items = [planted]
        with pytest.raises(InputError, match=message):
            compare.compare(datalist, tmp_path / message[:9], arms="real,synthetic", folds=0, seeds=0, iterations=1)


def test_an_augmentation_for_another_fold_or_without_its_patients_is_refused(datalist, standin, tmp_path):
    standin.held_out = 1
    with pytest.raises(InputError, match="was made with fold 1 held out, not fold 0"):
        compare.compare(datalist, tmp_path / "a", arms="real,synthetic", folds=0, iterations=1)
    standin.held_out = None
    real = arms.read_datalist(datalist)
    write_json(tmp_path / "datalist.json", real | {"held_out_fold": 0})
    with pytest.raises(InputError, match="fitted_on.*a leak cannot be ruled out"):
        arms.augmented(tmp_path, real, 0)


def test_an_arm_without_an_accepted_case_is_said_to_equal_real(datalist, standin, tmp_path, capsys):
    standin.accepts = False
    compare.compare(datalist, tmp_path / "out", arms="real,synthetic", folds=1, seeds=0, iterations=1)
    assert "arm synthetic equals real in fold 1: no case was accepted" in capsys.readouterr().out


def test_a_lesion_donated_by_a_test_patient_is_refused(datalist, standin, tmp_path):
    standin.donor = "case04b"
    with pytest.raises(InputError, match="painted_diffusion has the test case case04b as its donor"):
        compare.compare(datalist, tmp_path / "a", arms="real,synthetic", folds=0, iterations=1)
    file = tmp_path / "manifest.jsonl"
    with pytest.raises(InputError, match="manifest.jsonl does not exist"):
        arms.read_manifest(file)
    file.write_text('{"case": "a"}\n')
    with pytest.raises(InputError, match="line 1 is damaged: KeyError.*source"):
        arms.read_manifest(file)


def test_a_leak_in_a_finished_run_is_found_when_the_results_are_gathered(datalist, standin, tmp_path):
    compare.compare(datalist, tmp_path / "out", arms="real", folds=0, seeds=0, iterations=1)
    file = tmp_path / "out/fold0/seed0/real/result.json"
    result = read_json(file)
    write_json(file, result | {"fitted_on": {"masks": ["p02"]}})
    with pytest.raises(InputError, match="masks was fitted on test patients p02"):
        results.collect(tmp_path / "out", arms.read_datalist(datalist))


def test_a_killed_comparison_goes_on_where_it_stopped(datalist, standin, tmp_path):
    output = tmp_path / "out"
    standin.dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        compare.compare(datalist, output, arms="real,oversampled", folds=0, iterations=10)
    assert not (output / "summary.json").exists() and (output / "fold0/seed1/real/model.pt").exists()
    compare.compare(datalist, output, arms="real,oversampled", folds=0, iterations=10)
    assert standin.trained == [
        "fold0/seed0/real",
        "fold0/seed0/oversampled",
        "fold0/seed1/real",
        "fold0/seed1/oversampled",
    ]
    assert not (output / "fold0/seed1/real/model.pt").exists()  # nothing of the killed run is left


def test_arms_seeds_and_folds_can_be_added_later_without_repeating_runs(datalist, standin, tmp_path):
    output = tmp_path / "out"
    compare.compare(datalist, output, arms="real", folds=0, seeds=0, iterations=10)
    compare.compare(datalist, output, arms="real,synthetic_oversampled", folds=(0, 1), seeds=(0, 1), iterations=10)
    assert len(standin.trained) == len(set(standin.trained)) == 8
    summary = read_json(output / "summary.json")
    assert summary["arms"] == ["real", "synthetic_oversampled"] and summary["folds"] == summary["seeds"] == [0, 1]
    before = (output / "summary.json").read_bytes()
    compare.compare(datalist, output, arms="real", folds=0, seeds=0, iterations=10)
    assert (output / "summary.json").read_bytes() == before
    with pytest.raises(InputError, match="iterations was 10, now 20"):
        compare.compare(datalist, output, arms="real", iterations=20)


def test_a_failed_run_is_named_after_the_others_have_finished(datalist, standin, tmp_path, monkeypatch):
    def run_bundle(bundle, config_files, overrides, log):
        if log.parent.name == "oversampled":
            raise RuntimeError("out of memory")
        standin.run_bundle(bundle, config_files, overrides, log)

    sys.modules["tools.bundle"].run_bundle = run_bundle
    with pytest.raises(RuntimeError, match=r"1 of 3 runs failed \(fold 0 seed 0 oversampled\)"):
        compare.compare(datalist, tmp_path / "out", arms="real,oversampled,synthetic", folds=0, seeds=0, iterations=10)
    assert standin.trained == ["fold0/seed0/real", "fold0/seed0/synthetic"]


def test_every_arm_gets_the_same_settings_but_for_its_own_folder(datalist, standin, tmp_path, monkeypatch):
    seen = {}

    def run_bundle(bundle, config_files, overrides, log):
        seen[log.parent.name] = overrides
        standin.run_bundle(bundle, config_files, overrides, log)

    sys.modules["tools.bundle"].run_bundle = run_bundle
    output = tmp_path / "out"
    compare.compare(datalist, output, folds=1, seeds=3, iterations=120, overrides={"batch_size": 2})
    settings = [
        {key: value for key, value in overrides.items() if str(output) not in str(value)} for overrides in seen.values()
    ]
    assert all(one == settings[0] for one in settings) and len(settings) == 4
    assert settings[0] == {
        "fold": 1,
        "seed": 3,
        "max_epochs": 2,
        "epoch_length": 60,
        "val_interval": 2,
        "spacing_mm": [0.8, 0.8, -1],  # of the training patients, whose fold is 0
        "batch_size": 2,
    }


def test_oversampling_evens_out_the_tissues_and_stops_at_the_cap(datalist, standin, tmp_path):
    compare.compare(datalist, tmp_path / "out", arms="real,oversampled", folds=0, seeds=0, iterations=1)
    own = read_json(tmp_path / "out/fold0/seed0/oversampled/datalist.json")["training"]
    times = [sum(item["image"].endswith(f"case{number:02d}a.nii.gz") for item in own) for number in (1, 3, 5)]
    assert times[0] > 3 and times[1:] == [1, 1]  # patient 1 alone has consolidation
    assert arms.repeats(np.array([[1, 0]] * 40 + [[0, 1]]))[-1] == arms.REPEATS_AT_MOST
    assert arms.repeats(np.array([[1, 1], [1, 1]])) == [1, 1]
    assert arms.repeats(np.zeros((3, 2))) == [1, 1, 1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"arms": "real,syntetic"}, "no arm 'syntetic'; there are real, oversampled"),
        ({"arms": "oversampled"}, "arms oversampled lack real"),
        ({"folds": (0, 7)}, "has no fold 7; it has 0, 1"),
        ({"seeds": "a"}, r"seeds must be integers such as 0,1, not \['a'\]"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1, not 0"),
        ({"overrides": {"max_epochs": 3}}, "overrides may not hold 'max_epochs'"),
        ({"datalist": "absent.json"}, "absent.json does not exist"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(datalist, standin, tmp_path, changes, message):
    arguments = {"datalist": datalist, "output": tmp_path / "out"} | changes
    with pytest.raises(InputError, match=message):
        compare.compare(**arguments)
    assert not (tmp_path / "out").exists() and not standin.trained


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content["training"][0].update(fold=1), "patient p00 lies in fold 1 and in fold 0"),
        (lambda content: content["training"][0].pop("patient"), "case00a.* lacks patient"),
        (
            lambda content: content["training"][0].update(image="images/gone.nii.gz"),
            "gone.nii.gz, which does not exist",
        ),
        (lambda content: content["training"][0].update(synthetic=True), "case00a is synthetic"),
        (lambda content: content.update(held_out_fold=1), "made with fold 1 held out, so fold 0 cannot be tested"),
        (lambda content: content.update(training=[]), "is not a datalist"),
        (lambda content: content["labels"].update(honeycombing=6), "honeycombing.*but the segmenter has"),
        (
            lambda content: content.update(training=[item for item in content["training"] if item["fold"] == 0]),
            "holds fold 0 only; nothing is left to train on",
        ),
    ],
)
def test_a_datalist_that_cannot_be_compared_is_refused(datalist, standin, tmp_path, change, message):
    content = json.loads(datalist.read_text())
    change(content)
    write_json(datalist, content)
    with pytest.raises(InputError, match=message):
        compare.compare(datalist, tmp_path / "out", iterations=1)


def test_a_dice_table_that_does_not_fit_the_test_cases_is_refused(tmp_path):
    test = [{"image": f"/x/{name}.nii.gz", "label": f"/y/{name}.nii.gz", "patient": name} for name in "ab"]
    file = tmp_path / "dice.csv"
    with pytest.raises(RuntimeError, match="ended without"):
        results.read_dice(file, test, ["fibrosis"])
    for text, message in (
        ("filename,class0,class1,mean\n", "expected filename, fibrosis, mean"),
        ("filename,class0,mean\n/x/a.nii.gz,0.5,0.5\n", "lacks the test cases b"),
        ("filename,class0,mean\n/x/a.nii.gz,0.5,0.5\n/x/a.nii.gz,0.5,0.5\n", "a.nii.gz twice"),
        ("filename,class0,mean\n/x/c.nii.gz,0.5,0.5\n", "c.nii.gz which is no test case"),
    ):
        file.write_text(text)
        with pytest.raises(RuntimeError, match=message):
            results.read_dice(file, test, ["fibrosis"])
    file.write_text("filename,class0,mean\n/x/b.nii.gz,nan,nan\n/x/a.nii.gz,0.5,0.5\n")
    assert results.read_dice(file, test, ["fibrosis"]) == {"a": {"fibrosis": 0.5}, "b": {"fibrosis": None}}
