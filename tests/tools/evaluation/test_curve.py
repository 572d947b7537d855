"""The curve with a stand-in for the evaluation."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

import tools.evaluation.curve as module
from tools.data.datalist import read_fold
from tools.data.provenance import cases_read
from tools.evaluation.curve import curve, read_quality
from tools.io.files import InputError, RunError, read_json
from tools.tissues import tissue_labels

FLOOR = {"fibrosis": 5.0, "emphysema": 9.0}


@pytest.fixture
def cohort(tmp_path):
    folder = tmp_path / "cohort"
    items = [{"image": f"images/c{n}.nii.gz", "label": f"labels/c{n}.nii.gz", "patient": f"p{n}", "fold": n % 2}
             for n in range(8)]  # fmt: skip
    for number, item in enumerate(items):
        for kind in ("image", "label"):
            (folder / item[kind]).parent.mkdir(parents=True, exist_ok=True)
            (folder / item[kind]).write_text(item[kind])
        hu = np.full((2, 2, 1), -1000 + number, np.int16)
        hu[0] = 0
        nib.save(nib.Nifti1Image(hu, np.eye(4)), folder / item["image"])
    (folder / "datalist.json").write_text(json.dumps({"labels": tissue_labels(), "training": items}))
    (folder / "model.pt").write_bytes(b"weights")
    return folder


@pytest.fixture
def stand_in(monkeypatch):
    """Replace the evaluation by one whose distance halves with every doubling of the evaluations."""
    runs = []

    def run_bundle(bundle, configs, overrides, log):
        assert (bundle, configs) == ("difflung_synthesis", ["train.json", "evaluate.json"])
        runs.append(overrides)
        if overrides["num_steps"] == 3:
            raise RunError("out of memory")
        folder = module.Path(overrides["output_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        head = "tissue,cases,hu_wasserstein,hu_wasserstein_floor,texture_distance,texture_floor,ssim"
        lines = [f"{t},4,{f + 64 / overrides['num_steps']},{f},nan,,0.5" for t, f in FLOOR.items()]
        (folder / "quality.csv").write_text("\n".join([head, *lines]) + "\n")

    monkeypatch.setattr(module, "run_bundle", run_bundle)
    return runs


def call(cohort, output, **given):
    curve(cohort / "datalist.json", 0, cohort / "model.pt", output, **{"evaluations": (4, 1)} | given)


def test_curve_has_a_row_per_sampler_number_and_tissue(cohort, stand_in, tmp_path, capsys):
    call(cohort, tmp_path / "out", samplers="euler,heun")
    with open(tmp_path / "out/curve.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["sampler"], r["evaluations"], r["tissue"], r["hu_wasserstein"]) for r in rows[:4]] == [
        ("euler", "1", "fibrosis", "69.0"), ("euler", "1", "emphysema", "73.0"),
        ("euler", "4", "fibrosis", "21.0"), ("euler", "4", "emphysema", "25.0"),
    ]  # fmt: skip
    assert len(rows) == 8 and rows[0]["ssim"] == "0.5" and rows[0]["texture_distance"] == ""
    assert list(rows[0])[-1] == "seconds"
    assert {key: stand_in[0][key] for key in ("num_steps", "sampler", "fold")} == {
        "num_steps": 4, "sampler": "euler", "fold": 0,
    }  # fmt: skip
    assert stand_in[0]["checkpoint"] == str(cohort / "model.pt")
    assert stand_in[0]["datalist"] == str(cohort / "datalist.json")
    out = capsys.readouterr().out
    assert "run 4 of 4: heun, 1 evaluations" in out and "real tissue" in out
    assert (tmp_path / "out/curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("without_ink")
def test_finished_runs_are_kept_and_numbers_can_be_added(cohort, stand_in, tmp_path, capsys):
    with pytest.raises(RunError, match="out of memory"):
        call(cohort, tmp_path / "out", evaluations=(1, 3, 4))
    call(cohort, tmp_path / "out", evaluations=(1, 4))
    assert [run["num_steps"] for run in stand_in] == [1, 3, 4]
    assert "run 1 of 2: dpm_solver_flow, 1 evaluations (finished earlier)" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"cases was None, now 2"):
        call(cohort, tmp_path / "out", cases=2)


@pytest.mark.usefixtures("without_ink")
def test_fewer_cases_are_the_first_held_out_ones_and_all_training_ones(cohort, stand_in, tmp_path, capsys):
    call(cohort, tmp_path / "out", cases=2, evaluations=4)
    items = read_json(tmp_path / "out/datalist.json")["training"]
    assert stand_in[0]["datalist"] == str(tmp_path / "out/datalist.json")
    assert [item["patient"] for item in items if item["fold"] == 0] == ["p0", "p2"]
    assert len([item for item in items if item["fold"] == 1]) == 4
    assert (tmp_path / "out" / items[0]["image"]).resolve() == (cohort / "images" / "c1.nii.gz").resolve()
    assert "only the first 2 of 4 held-out cases are painted" in capsys.readouterr().out


def test_an_evaluation_without_a_quality_table_is_an_error(tmp_path):
    with pytest.raises(RunError, match="ended without quality.csv"):
        read_quality(tmp_path)
    (tmp_path / "quality.csv").write_text("tissue,cases\n")
    with pytest.raises(RunError, match="measured no tissue"):
        read_quality(tmp_path)


def test_table_is_byte_for_byte_what_the_csv_module_writes(cohort, stand_in, tmp_path):
    call(cohort, tmp_path / "out", evaluations=(3 * 7, 1))
    rows = [
        {"sampler": run["sampler"], "evaluations": run["evaluations"], "tissue": tissue} | found
        | {"seconds": run["seconds"]}
        for run in (read_json(tmp_path / f"out/dpm_solver_flow_{number}/result.json") for number in (1, 21))
        for tissue, found in run["tissues"].items()
    ]  # fmt: skip
    with open(tmp_path / "expected.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert (tmp_path / "out/curve.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()


@pytest.mark.parametrize(("given", "told"), [
    ({"evaluations": (1, 0)}, r"evaluations must be whole numbers of at least 1 such as 1,2,4, not \[1, 0\]"),
    ({"evaluations": "few"}, r"not \['few'\]"),
    ({"samplers": ()}, "samplers must name at least one"),
    ({"cases": 0}, "cases must be a whole number of at least 1, not 0"),
    ({"variant": "tiny"}, "there is no variant 'tiny'; there are .*few_step"),
    ({"overrides": {"sampler": "heun"}}, "overrides may not hold 'sampler': curve sets it"),
    ({"overrides": {"overlapp": 0.5}}, "has no id 'overlapp' to override"),
])  # fmt: skip
def test_wrong_argument_is_refused_before_anything_runs(cohort, stand_in, tmp_path, given, told):
    with pytest.raises(InputError, match=told):
        call(cohort, tmp_path / "out", **given)
    assert not stand_in and not (tmp_path / "out").exists()


def test_missing_or_leaking_weights_are_refused(cohort, stand_in, tmp_path):
    with pytest.raises(InputError, match="checkpoint .*none.pt does not exist"):
        curve(cohort / "datalist.json", 0, cohort / "none.pt", tmp_path / "out")
    (cohort / "card.json").write_text(json.dumps({"patients": ["p2"]}))
    with pytest.raises(InputError, match="leak in .*stage synthesizer was fitted on test patients p2"):
        call(cohort, tmp_path / "out")
    seen = cases_read(read_fold(cohort / "datalist.json", 0)[1])[0] | {"patient": "somebody"}
    (cohort / "card.json").write_text(json.dumps({"cases": [seen]}))
    with pytest.raises(InputError, match="c0 of patient somebody, which is the same CT as test case c0 of patient p0"):
        call(cohort, tmp_path / "out")


@pytest.mark.usefixtures("without_ink")
def test_settings_on_the_card_are_kept_and_unknown_attributes_are_not_told(cohort, stand_in, tmp_path):
    content = read_json(cohort / "datalist.json")
    for number, item in enumerate(content["training"]):
        item["age"] = 40 + number
    (cohort / "datalist.json").write_text(json.dumps(content))
    settings = {"network_channels": [8, 16], "num_steps": 99, "attributes": {"age": [41, 50]}}
    (cohort / "card.json").write_text(json.dumps({"patients": ["p1"], "overrides": settings}))
    call(cohort, tmp_path / "out", evaluations=4)
    assert stand_in[0]["network_channels"] == [8, 16] and stand_in[0]["num_steps"] == 4
    items = read_json(tmp_path / "out/datalist.json")["training"]
    assert [item.get("age") for item in items if item["fold"] == 0] == [None, 42, 44, 46]


def test_variant_lies_between_train_and_evaluate():
    assert module.config_files("few_step") == ["train.json", "few_step.yaml", "evaluate.json"]
    assert module.config_files(None) == ["train.json", "evaluate.json"]
