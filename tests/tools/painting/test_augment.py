"""Augment without a network: a stand-in paints, everything around it is real."""

import json

import nibabel as nib
import numpy as np
import pytest

import tools.painting.augment as module
from tests.tools.fakes.augmented import AFFINE, manifest, write_case
from tools.__main__ import main
from tools.comparison.compare import compare
from tools.comparison.leaks import augmented_stages
from tools.data.datalist import read_fold
from tools.data.provenance import cases_read, digest
from tools.io.files import InputError, RunError, read_json, write_json
from tools.painting import shards
from tools.painting.augment import augment
from tools.painting.replay import replay
from tools.report.tables import map_table
from tools.tissues import tissue_labels
from tools.workflows import cluster, synthesizer

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test


def test_synthesizer_is_told_what_is_known_of_the_patients(datalist, stand_in, tmp_path):
    augment(datalist=datalist, fold=0, output=tmp_path / "out")
    assert stand_in[0][1]["attributes"] == {"age": [51.0, 55.0]}  # of the training patients
    ages = {row["case"]: row["patient"] for row in map(json.loads, (tmp_path / "out/manifest.jsonl").open())}
    told = dict(stand_in)["told"].splitlines()
    assert told[0] == "case,age"
    assert sorted(told[1:]) == sorted(f"{case},{50 + int(patient[1:])}" for case, patient in ages.items())
    weights, other = tmp_path / "out/synthesizer/model.pt", json.loads(datalist.read_text())
    for item in other["training"]:
        item["age"] += 3  # the weights know ages up to 55 only
    datalist.write_text(json.dumps(other))
    augment(datalist=datalist, fold=0, output=tmp_path / "again", synthesizer=weights)
    told = [text for kind, text in stand_in if kind == "told"][-1].splitlines()[1:]
    assert {line.rpartition(",")[2] for line in told} <= {"", "54", "55"} and len(told) == len(ages)


def test_synthetic_cases_differ_from_their_source_in_the_painted_region_only(datalist, stand_in, tmp_path):
    augment(datalist=datalist, fold=0, output=tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert rows and all(row["accepted"] for row in rows)
    for row in rows:
        painted, target = (nib.load(tmp_path / f"out/{kind}/{row['case']}.nii.gz") for kind in ("images", "labels"))
        source, label = (nib.load(tmp_path / f"cohort/{kind}/{row['source']}.nii.gz") for kind in ("images", "labels"))
        region = np.asarray(target.dataobj) != np.asarray(label.dataobj)
        assert region.any()
        assert np.array_equal(np.asarray(painted.dataobj)[~region], np.asarray(source.dataobj)[~region])
        assert np.array_equal(painted.affine, source.affine)
        assert painted.get_data_dtype() == source.get_data_dtype() == np.int16
        assert b"SYNTHETIC" in painted.header["descrip"].tobytes()
        assert row["checkpoint_sha256"] and row["source_sha256"] and row["steps"] == 8


def test_the_report_finds_how_the_new_maps_compare_with_the_data(datalist, stand_in, tmp_path):
    augment(datalist=datalist, fold=0, output=tmp_path / "out", method="copy_paste")
    rows = map_table([{"path": tmp_path / "out", "method": "copy_paste"}])
    assert {row["tissue"] for row in rows} == {"consolidation"} and len(rows) == 6
    volume = next(row for row in rows if row["measure"] == "size, ml")
    assert all(volume[key] > 0 for key in ("data", "bank", "distance"))
    assert volume["floor"] == 0  # the real ones are all of one size


def test_rare_tissue_grows_towards_the_frequent_one(datalist, stand_in, tmp_path):
    augment(datalist=datalist, fold=0, output=tmp_path / "out")
    training = [item for item in read_json(tmp_path / "out/datalist.json")["training"] if item["fold"] != 0]

    def voxels(value, synthetic):
        maps = [nib.load(tmp_path / "out" / i["label"]) for i in training if i.get("synthetic", False) == synthetic]
        return sum(int((np.asarray(m.dataobj) == value).sum()) for m in maps)

    before = voxels(5, False) / voxels(2, False)
    assert before < 0.2
    assert (voxels(5, False) + voxels(5, True)) / voxels(2, False) > 2 * before


def test_nothing_of_the_held_out_patients_is_read(datalist, stand_in, tmp_path):
    held_out = [item for item in json.loads(datalist.read_text())["training"] if item["fold"] == 0]
    for item in held_out:  # unreadable files would be noticed
        (datalist.parent / item["image"]).write_bytes(b"")
        (datalist.parent / item["label"]).write_bytes(b"")
    augment(datalist=datalist, fold=0, output=tmp_path / "out")
    content = read_json(tmp_path / "out/datalist.json")
    test_patients = {item["patient"] for item in held_out}
    stages = augmented_stages(tmp_path / "out", "cbmat")
    assert set(stages) == {"tissue maps and their frequencies", "synthesizer", "quality gate"}
    training = {f"p{number}": digest(datalist.parent / f"images/case{number}.nii.gz") for number in (1, 2, 4, 5)}
    assert all({row["patient"]: row["image_sha256"] for row in cases} == training for cases in stages.values())
    assert {item["patient"] for item in content["training"] if item["fold"] == 0} == test_patients
    assert not test_patients & {item["patient"] for item in content["training"] if item["fold"] != 0}
    seen = dict(stand_in)["seen"]
    assert len(seen) == 4 and not any(item["image"].split("/")[-1] in path for item in held_out for path in seen)
    text = (tmp_path / "out/manifest.jsonl").read_text()
    assert not any(f'"{patient}"' in text for patient in test_patients)


def test_same_seed_same_maps_for_both_methods_and_another_seed_others(datalist, stand_in, tmp_path):
    augment(datalist=datalist, fold=0, output=tmp_path / "a")
    augment(datalist=datalist, fold=0, output=tmp_path / "b", method="copy_paste")
    augment(datalist=datalist, fold=0, output=tmp_path / "c", seed=1)
    names = sorted(path.name for path in (tmp_path / "a/labels").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b/labels").iterdir())
    for name in names:
        a, b = (np.asarray(nib.load(tmp_path / f"{run}/labels/{name}").dataobj) for run in "ab")
        assert np.array_equal(a, b)
    assert (tmp_path / "a/manifest.jsonl").read_text() != (tmp_path / "c/manifest.jsonl").read_text()


def test_bad_painting_is_named_and_kept_apart_from_what_was_accepted(datalist, stand_in, tmp_path, monkeypatch):
    honest = synthesizer.run_bundle

    def too_bright(bundle, configs, overrides, log, variables=None):
        honest(bundle, configs, overrides, log)
        for path in (module.Path(overrides["dataset_dir"]) / "painted").glob("*_s000.nii.gz"):
            image, target = nib.load(path), nib.load(path.parents[1] / "targets" / path.name)
            label = nib.load(path.parents[1] / "labels" / path.name)
            hu = image.get_fdata(dtype=np.float32)
            hu[np.asarray(target.dataobj) != np.asarray(label.dataobj)] += 400
            nib.save(nib.Nifti1Image(hu, image.affine), path)

    monkeypatch.setattr(synthesizer, "run_bundle", too_bright)
    augment(datalist=datalist, fold=0, output=tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert [row["accepted"] for row in rows] == [not row["case"].endswith("_s000") for row in rows]
    tissue = rows[0]["tissues"][0]
    assert rows[0]["reason"].startswith(f"{tissue}: median") and not rows[0]["checks"][tissue]["accepted"]
    for name, expected in (("datalist", rows[1:]), ("datalist_unfiltered", rows)):
        items = [item for item in read_json(tmp_path / f"out/{name}.json")["training"] if item.get("synthetic")]
        assert [item["image"] for item in items] == [f"images/{row['case']}.nii.gz" for row in expected]
    assert read_json(tmp_path / "out/quality.json")["tissues"]


def test_manifest_has_what_it_takes_to_paint_a_case_again(datalist, stand_in, tmp_path, capsys):
    augment(datalist=datalist, fold=0, output=tmp_path / "out", seed=3)
    row, file = manifest(tmp_path / "out")[1], tmp_path / "out/manifest.jsonl"
    assert row["schema"] == 2 and row["map_kind"] == "transplanted" and row["sampler"] and row["guidance"] == 1
    assert row["versions"]["torch"] and row["threads"] >= 1 and row["conditions"]["age"] >= 51
    command = ["replay", "--manifest", str(file), "--case", row["case"], "--output", str(tmp_path / "again.nii.gz")]
    assert main(command) == 0
    assert "is the same, voxel by voxel" in capsys.readouterr().out
    assert (tmp_path / "again.nii.gz").read_bytes() == (tmp_path / f"out/images/{row['case']}.nii.gz").read_bytes()
    assert main(["replay", "--manifest", str(file), "--case", "nobody"]) == 1
    assert "has no case nobody" in capsys.readouterr().err
    assert main(["replay", "--manifest", str(file)]) == 2
    (tmp_path / "out/synthesizer/model.pt").write_bytes(b"other weights")
    assert main(command) == 1
    assert "synthesizer of" in (error := capsys.readouterr().err) and "has changed since" in error


def test_a_replay_that_differs_is_an_error(datalist, stand_in, tmp_path):
    augment(datalist=datalist, fold=0, output=tmp_path / "out")
    rows = manifest(tmp_path / "out")
    (tmp_path / "out/manifest.jsonl").write_text(json.dumps(rows[0] | {"painting": rows[0]["painting"] | {"seed": 9}}))
    with pytest.raises(RunError, match=f"{rows[0]['case']} differs from what was painted"):
        replay(tmp_path / "out/manifest.jsonl", rows[0]["case"])


def test_each_way_of_training_has_its_overlay(datalist, stand_in, tmp_path):
    for method, configs in (("cbmat", ""), ("konz", " konz_ablation.yaml"), ("no_ablation", " no_ablation.yaml")):
        augment(datalist=datalist, fold=0, output=tmp_path / method, method=method, max_cases=1)
        assert [kind for kind, _ in stand_in if kind.startswith("train")][-1] == f"train.json{configs}"
        assert read_json(tmp_path / method / "synthesizer/card.json")["method"] == method


def test_change_outside_the_region_is_never_written(datalist, stand_in, tmp_path, monkeypatch):
    honest = synthesizer.run_bundle

    def careless(bundle, configs, overrides, log, variables=None):
        honest(bundle, configs, overrides, log)
        for path in (module.Path(overrides["dataset_dir"]) / "painted").glob("*"):
            image = nib.load(path)
            hu = image.get_fdata(dtype=np.float32)
            hu[0, 0, 0] += 1
            nib.save(nib.Nifti1Image(hu, image.affine), path)

    monkeypatch.setattr(synthesizer, "run_bundle", careless)
    with pytest.raises(RuntimeError, match="changed outside its painted region"):
        augment(datalist=datalist, fold=0, output=tmp_path / "out")
    assert not (tmp_path / "out/datalist.json").exists()


def test_finished_run_is_left_alone_and_other_settings_are_refused(datalist, stand_in, tmp_path, capsys):
    augment(datalist=datalist, fold=0, output=tmp_path / "out")
    runs = len(stand_in)
    augment(datalist=datalist, fold=0, output=tmp_path / "out")
    assert len(stand_in) == runs and "complete already" in capsys.readouterr().out
    with pytest.raises(InputError, match="steps was 8, now 20"):
        augment(datalist=datalist, fold=0, output=tmp_path / "out", steps=20)


def test_a_scheduler_that_cannot_be_reached_leaves_no_folder(datalist, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with pytest.raises(InputError, match="scheduler tcp://127.0.0.1:9 cannot be reached"):
        augment(datalist=datalist, fold=0, output=tmp_path / "out", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="scheduler tcp://127.0.0.1:9 cannot be reached"):
        compare(datalist, tmp_path / "out", arms="real,cbmat", folds=0, seeds=0, scheduler="tcp://127.0.0.1:9")
    assert not (tmp_path / "out").exists()


def test_interrupted_run_goes_on_with_the_trained_synthesizer(datalist, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "paint", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        augment(datalist=datalist, fold=0, output=tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(synthesizer, "run_bundle", lambda *given: pytest.fail("trained again"))
    monkeypatch.setattr(shards, "paint", lambda *given: (_ for _ in ()).throw(RuntimeError("painting")))
    with pytest.raises(RuntimeError, match="painting"):
        augment(datalist=datalist, fold=0, output=tmp_path / "out")


def test_synthesizer_that_saw_a_held_out_patient_is_refused(datalist, stand_in, tmp_path):
    augment(datalist=datalist, fold=0, output=tmp_path / "out")
    weights = tmp_path / "out/synthesizer/model.pt"
    with pytest.raises(InputError, match="leak in .*model.pt: stage synthesizer was fitted on test patients p1, p4"):
        augment(datalist=datalist, fold=1, output=tmp_path / "leak", synthesizer=weights)
    augment(datalist=datalist, fold=0, output=tmp_path / "again", synthesizer=weights)
    with pytest.raises(InputError, match="none.pt does not exist"):
        augment(datalist=datalist, fold=0, output=tmp_path / "x", synthesizer=tmp_path / "none.pt")


def test_given_weights_go_on_on_the_fold_and_their_patients_stay_on_the_card(datalist, stand_in, tmp_path):
    start = tmp_path / "start/model.pt"
    start.parent.mkdir()
    start.write_bytes(b"given")
    write_json(start.with_name("card.json"), {"cases": [{"case": "far", "patient": "stranger"}], "attributes": {}})
    given = {"datalist": datalist, "fold": 0, "output": tmp_path / "out", "tune_steps": 120}
    for steps, weights in ((120, None), (-1, start)):
        with pytest.raises(InputError, match=f"tune_steps {steps} is how long the weights of --synthesizer"):
            augment(**given | {"tune_steps": steps}, synthesizer=weights)
    augment(**given, synthesizer=start, densities=True)
    configs, overrides = stand_in[0]
    assert configs == "train.json fine_tune.yaml" and overrides["start"] == str(start)
    assert overrides["max_epochs"] * overrides["epoch_length"] == 120
    card = read_json(tmp_path / "out/synthesizer/card.json")
    assert card["patients"] == ["p1", "p2", "p4", "p5", "stranger"]
    assert {row["patient"] for row in card["cases"]} == set(card["patients"])
    assert "density_" in dict(stand_in)["told"].splitlines()[0]


@pytest.mark.parametrize("stage", ["synthesizer", "segmenter"])
def test_weights_that_saw_a_held_out_ct_under_another_patients_name_are_refused(datalist, tmp_path, stage):
    held_out = read_fold(datalist, 1)[1]
    (tmp_path / "model.pt").write_bytes(b"weights")
    seen = [row | {"patient": "somebody", "case": "x"} for row in cases_read(held_out)[:1]]
    write_json(tmp_path / "card.json", {"patients": ["somebody"], "cases": seen, "attributes": {}})
    told = f"{stage} was fitted on x of patient somebody, which is the same CT as test case case1"
    with pytest.raises(InputError, match=told):
        augment(datalist=datalist, fold=1, output=tmp_path / "out", **{stage: tmp_path / "model.pt"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "message"), [
    ({"method": "gan"}, "method must be one of cbmat, konz, no_ablation, copy_paste, drawn, not gan"),
    ({"procedural": 2}, "procedural must be from 0 to 1, not 2"),
    ({"method": "copy_paste", "procedural": 0.5}, "copy_paste pastes the HU of donors, which procedural"),
    ({"balance": 1.5}, "balance must be above 0 and at most 1, not 1.5"),
    ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
    ({"max_cases": 0}, "max_cases must be a whole number of at least 1, not 0"),
    ({"fold": 9}, "has no fold 9; it has 0, 1, 2"),
    ({"overrides": {"max_epoch": 1}}, "train.json has no id 'max_epoch' to override"),
])  # fmt: skip
def test_wrong_settings_are_refused_before_anything_is_written(datalist, tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        augment(**({"datalist": datalist, "fold": 0} | given), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_patient_on_both_sides_is_refused(datalist):
    content = json.loads(datalist.read_text())
    content["training"][1]["patient"] = "p0"
    datalist.write_text(json.dumps(content))
    with pytest.raises(InputError, match="patient p0 lies in fold 0 and in fold 1"):
        read_fold(datalist, 0)


def test_balanced_cohort_is_left_as_it_is(datalist, stand_in, tmp_path, capsys):
    augment(datalist=datalist, fold=0, output=tmp_path / "out", balance=0.001)
    assert "balanced already" in capsys.readouterr().out
    assert not stand_in  # nothing was trained
    content = read_json(tmp_path / "out/datalist.json")
    assert len(content["training"]) == 6 and not any(item.get("synthetic") for item in content["training"])


def test_cohort_without_pathology_is_refused(tmp_path, stand_in):
    for number in range(2):
        write_case(tmp_path / "cohort", f"case{number}", number, value=1)
        path = tmp_path / f"cohort/labels/case{number}.nii.gz"
        label = np.asarray(nib.load(path).dataobj)
        nib.save(nib.Nifti1Image((label > 0).astype(np.uint8), AFFINE), path)
    items = [{"image": f"images/case{n}.nii.gz", "label": f"labels/case{n}.nii.gz", "fold": n, "patient": f"p{n}"}
             for n in range(2)]  # fmt: skip
    (tmp_path / "cohort/datalist.json").write_text(json.dumps({"labels": tissue_labels(), "training": items}))
    with pytest.raises(InputError, match="no pathological tissue"):
        augment(datalist=tmp_path / "cohort/datalist.json", fold=0, output=tmp_path / "out", method="copy_paste")


def test_a_map_too_small_to_paint_is_left_out_by_name(datalist, stand_in, tmp_path, monkeypatch, capsys):
    augment(datalist=datalist, fold=0, output=tmp_path / "all")
    sizes = {row["case"]: sum(t["voxels"] for t in row["checks"].values()) for row in manifest(tmp_path / "all")}
    smallest = min(sizes, key=sizes.get)
    monkeypatch.setattr(module, "smallest_region", lambda overrides: sizes[smallest] + 1)
    augment(datalist=datalist, fold=0, output=tmp_path / "out")
    assert {row["case"] for row in manifest(tmp_path / "out")} == set(sizes) - {smallest}
    assert f"map {smallest} is left out: {sizes[smallest]} voxels to paint" in capsys.readouterr().out


def test_the_smallest_region_is_a_cell_of_the_coarsest_level():
    assert synthesizer.smallest_region({}) == 64
    assert synthesizer.smallest_region({"network_channels": [8, 16, 16]}) == 16
    assert synthesizer.smallest_region({"patch_size": [48, 48, 16]}) == 512
