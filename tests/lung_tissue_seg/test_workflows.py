"""The segmenter bundle run as a user runs it: training, evaluation, inference, exports."""

import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from tests.lung_tissue_seg.bundle import (
    CASES,
    CONFIGS,
    TINY,
    WORKFLOWS,
    read_rows,
    run,
    write_cohort,
)


@pytest.fixture(scope="module")
def trained(cohort) -> Path:
    """Run the training once; its folder holds model.pt and the metrics."""
    output = cohort.parent / "trained"
    command = ["run", "training"]
    run(command, ["train"], cohort, dataset_dir=str(cohort), model_dir=str(output), output_dir=str(output), **TINY)
    return output


@pytest.mark.slow
def test_training_writes_weights_and_dice_where_absent_tissue_is_nan(trained):
    weights = torch.load(trained / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    rows = read_rows(trained / "val_mean_dice_raw.csv")
    assert set(rows) == {"case0.nii.gz", "case1.nii.gz"}
    for name, row in rows.items():
        assert len(row) == 6  # five tissues and their mean
        assert math.isnan(row[4]), f"{name} has no consolidation, so its Dice is not a number"
        assert not math.isnan(row[0])
    assert list(trained.glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_inference_labels_every_case_in_its_own_geometry(trained, cohort, tmp_path):
    settings = {key: TINY[key] for key in ("device", "window_size", "network_channels", "find_lung")}
    folders = {"dataset_dir": str(cohort / "images"), "model_dir": str(trained), "output_dir": str(tmp_path)}
    run(["run", "inferring"], ["inference"], tmp_path, **folders, **settings)
    for number, (shape, _, _) in enumerate(CASES):
        image = nib.load(cohort / f"images/case{number}.nii.gz")
        saved = nib.load(tmp_path / f"case{number}_tissues.nii.gz")
        assert saved.shape == shape and saved.get_data_dtype() == np.uint8
        assert np.allclose(saved.affine, image.affine, rtol=0, atol=1e-6)
        assert set(np.unique(saved.dataobj)) <= set(range(6))


@pytest.mark.slow
def test_training_sharpens_pictures_and_draws_extra_cases_on_a_schedule(cohort, tmp_path):
    content = json.loads((cohort / "datalist.json").read_text())
    items = [item | {key: str(cohort / item[key]) for key in ("image", "label")} for item in content["training"]]
    items[-1] |= {"fold": -1, "draw_weight": 2.0}
    (tmp_path / "datalist.json").write_text(json.dumps(content | {"training": items}))
    places = {"dataset_dir": str(tmp_path), "model_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "e")}
    settings = TINY | {"max_epochs": 2, "extra_ratio": 1.0, "extra_schedule": "real_last", "real_share": 0.5}
    run(["run", "training"], ["train", "kernels"], tmp_path, **places, **settings)
    weights = torch.load(tmp_path / "m/model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.slow
def test_blocks_train_evaluate_and_label(cohort, tmp_path):
    settings = TINY | {
        "patch_depth": 16,
        "window_size": [32, 32, 16],
        "patches_per_case": 2,
        "spacing_mm": [1.6, 1.6, 2],
    }
    places = {"dataset_dir": str(cohort), "model_dir": str(tmp_path), "output_dir": str(tmp_path / "eval")}
    run(["run", "training"], ["train", "volume"], tmp_path, **places, **settings)
    rows = read_rows(tmp_path / "eval/val_mean_dice_raw.csv")
    run(["run", "evaluating"], ["train", "volume", "evaluate"], tmp_path, **places, **settings)
    assert read_rows(tmp_path / "eval/val_mean_dice_raw.csv").keys() == rows.keys()
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert any(value.ndim == 5 for value in weights.values())
    settings = {key: settings[key] for key in ("device", "window_size", "network_channels", "find_lung", "spacing_mm")}
    places |= {"dataset_dir": str(cohort / "images")}
    run(["run", "inferring"], ["inference", "volume"], tmp_path, **places, **settings)
    for number, (shape, _, _) in enumerate(CASES):
        assert nib.load(tmp_path / f"eval/case{number}_tissues.nii.gz").shape == shape


@pytest.mark.slow
def test_evaluation_repeats_the_dice_of_training(trained, cohort, tmp_path):
    folders = {"dataset_dir": str(cohort), "model_dir": str(trained), "output_dir": str(tmp_path)}
    run(["run"], ["train", "evaluate"], tmp_path, **folders, **TINY)
    expected, found = (read_rows(folder / "val_mean_dice_raw.csv") for folder in (trained, tmp_path))
    assert expected.keys() == found.keys()
    for name in expected:
        assert np.allclose(expected[name], found[name], equal_nan=True, atol=1e-6)
    with open(tmp_path / "scores.csv", newline="") as file:
        scores = list(csv.DictReader(file))
    assert [row["case"] for row in scores] == ["case0"] * 5 + ["case1"] * 5
    for row in scores:  # the same Dice, by another way
        place = ("healthy", "ground_glass", "fibrosis", "emphysema", "consolidation").index(row["tissue"])
        dice = expected[f"{row['case']}.nii.gz"][place]
        assert row["dice"] == "" if math.isnan(dice) else float(row["dice"]) == pytest.approx(dice, abs=1e-5)
    assert (tmp_path / "scores_summary.csv").is_file() and (tmp_path / "confusion.csv").is_file()


@pytest.mark.slow
def test_voxels_that_nobody_labelled_are_neither_learned_nor_scored(cohort, tmp_path):
    """Half of every label is hidden: the scores do not depend on what the answer says there, and training runs."""
    for item in json.loads((cohort / "datalist.json").read_text())["training"]:
        image, label = (nib.load(cohort / item[key]) for key in ("image", "label"))
        hidden = np.asarray(label.dataobj).copy()
        hidden[: hidden.shape[0] // 2] = 255
        for key, array in (("image", np.asarray(image.dataobj)), ("label", hidden)):
            (tmp_path / item[key]).parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, image.affine), tmp_path / item[key])
    (tmp_path / "datalist.json").write_text((cohort / "datalist.json").read_text())
    folders = {"dataset_dir": str(tmp_path), "model_dir": str(tmp_path), "output_dir": str(tmp_path)}
    run(["run", "training"], ["train"], tmp_path, **folders, **TINY)
    run(["run", "evaluating"], ["train", "evaluate"], tmp_path, **folders, **TINY)
    with open(tmp_path / "confusion.csv", newline="") as file:
        rows = {row.pop("true"): row for row in csv.DictReader(file)}
    seen = [np.asarray(nib.load(tmp_path / f"labels/case{number}.nii.gz").dataobj) for number in (0, 1)]
    for value, name in enumerate(("healthy", "ground_glass", "fibrosis", "emphysema"), 1):
        assert sum(map(int, rows[name].values())) == sum((label == value).sum() for label in seen)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "names"), [("run", ["train", "evaluate"]), ("inferring", ["inference"])])
def test_missing_weights_are_an_error(cohort, tmp_path, command, names):
    command = ["run"] if command == "run" else ["run", command]
    settings = {key: TINY[key] for key in ("device", "window_size", "network_channels", "find_lung")}
    folders = {"dataset_dir": str(cohort / "images"), "datalist": str(cohort / "datalist.json")}
    if names == ["inference"]:
        del folders["datalist"]
    folders |= {"model_dir": str(tmp_path / "nowhere"), "output_dir": str(tmp_path)}
    done = run(command, names, tmp_path, check=False, **folders, **settings)
    assert done.returncode != 0
    assert str(tmp_path / "nowhere/model.pt") in done.stderr
    assert not list(tmp_path.glob("*.nii.gz")) and not list(tmp_path.glob("*.csv"))


@pytest.mark.slow
def test_weights_of_another_label_scheme_are_an_error(trained, cohort, tmp_path):
    settings = {key: TINY[key] for key in ("device", "window_size", "network_channels", "find_lung")}
    folders = {"dataset_dir": str(cohort / "images"), "model_dir": str(trained), "output_dir": str(tmp_path)}
    scheme = {"background": 0, "healthy": 1, "nodule": 2}
    done = run(["run", "inferring"], ["inference"], tmp_path, check=False, **folders, **settings, labels=scheme)
    assert done.returncode != 0 and "size mismatch" in done.stderr
    assert not list(tmp_path.glob("*.nii.gz"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 2])  # a case that is validated, and one that is trained on
def test_a_label_outside_the_scheme_is_an_error(tmp_path, number):
    write_cohort(tmp_path / "cohort")
    path = tmp_path / f"cohort/labels/case{number}.nii.gz"
    label = nib.load(path)
    values = np.asarray(label.dataobj).copy()
    values[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(values, label.affine), path)
    folders = {"dataset_dir": str(tmp_path / "cohort"), "model_dir": str(tmp_path), "output_dir": str(tmp_path)}
    done = run(["run", "training"], ["train"], tmp_path, check=False, **folders, **TINY)
    assert done.returncode != 0 and f"case{number}.nii.gz holds 7; labels name background=0" in done.stderr
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.slow
def test_same_seed_gives_the_same_weights_and_the_last_epoch_is_validated(trained, cohort, tmp_path):
    """The second run validates every fifth epoch only, which its single epoch is not."""
    again = tmp_path / "again"
    folders = {"dataset_dir": str(cohort), "model_dir": str(again), "output_dir": str(again)}
    run(["run"], ["train"], tmp_path, **folders, **(TINY | {"val_interval": 5}))
    one, two = (torch.load(folder / "model.pt", weights_only=True) for folder in (trained, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert len(read_rows(again / "val_mean_dice_raw.csv")) == 2
    other = tmp_path / "other"
    folders |= {"model_dir": str(other), "output_dir": str(other)}
    run(["run"], ["train"], tmp_path, **folders, **(TINY | {"seed": 1}))
    three = torch.load(other / "model.pt", weights_only=True)
    assert not all(torch.equal(one[key], three[key]) for key in one)


@pytest.mark.slow
def test_training_goes_on_where_it_was_stopped(cohort, tmp_path):
    """Three epochs at once, and one epoch of the same schedule followed by --resume, end with the same weights."""
    weights, stop = [], {"train::trainer::max_epochs": 1, "total_epochs": 3}
    for folder, runs in (("straight", [{}]), ("stopped", [stop, {"resume": True}])):
        for changes in runs:
            output = str(tmp_path / folder)
            settings = TINY | {"max_epochs": 3, "val_interval": 9} | changes
            run(["run"], ["train"], tmp_path, dataset_dir=str(cohort), model_dir=output, output_dir=output, **settings)
        weights.append(torch.load(tmp_path / folder / "model.pt", weights_only=True))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    state = torch.load(tmp_path / "straight/training.pt", weights_only=True)
    assert not all(torch.equal(state["network"][key], weights[0][key]) for key in weights[0])  # an average is saved
    done = run(["run"], ["train"], tmp_path, check=False, dataset_dir=str(cohort), model_dir=str(tmp_path / "none"),
               output_dir=str(tmp_path), **TINY, resume=True)  # fmt: skip
    assert done.returncode != 0 and "there is nothing to resume" in done.stderr


@pytest.mark.slow
def test_two_processes_train_and_evaluate(cohort, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    folders = {"dataset_dir": str(cohort), "model_dir": str(tmp_path), "output_dir": str(tmp_path)}
    run(["run", "training"], WORKFLOWS["multi_gpu_train"], tmp_path, launcher, **folders, **TINY)
    trained = read_rows(tmp_path / "val_mean_dice_raw.csv")
    assert set(trained) == {"case0.nii.gz", "case1.nii.gz"}
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2  # of the trainer and the evaluator, rank 0 only
    folders["output_dir"] = str(tmp_path / "again")
    run(["run", "evaluating"], WORKFLOWS["multi_gpu_evaluate"], tmp_path, launcher, **folders, **TINY)
    assert read_rows(tmp_path / "again/val_mean_dice_raw.csv").keys() == trained.keys()
    with open(tmp_path / "again/scores.csv", newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["case0"] * 5 + ["case1"] * 5


@pytest.mark.slow
def test_exports_give_the_same_labels(cohort, tmp_path):
    """TorchScript and ONNX, exported and run by the commands of the page, against PyTorch, voxel by voxel."""
    pytest.importorskip("onnxruntime")
    models, weights = tmp_path / "models", tmp_path / "weights"
    models.mkdir()
    weights.mkdir()
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    parser["network_channels"] = TINY["network_channels"]
    network = parser.get_parsed_content("network_def")
    torch.manual_seed(0)  # drawn weights give several labels; those of a few steps give background alone
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(network.state_dict(), weights / "model.pt")
    common = ["--ckpt_file", str(weights / "model.pt"), "--meta_file", str(CONFIGS / "metadata.json")]
    axes = "{image: {0: batch, 2: width, 3: height}}"
    onnx = ["--input_shape", "[2,1,96,64]"]
    onnx += ["--converter_kwargs", f"{{input_names: [image], output_names: [pred], dynamic_axes: {axes}}}"]
    settings = {"network_channels": TINY["network_channels"]}
    for command, name, more in (("ckpt_export", "model.ts", []), ("onnx_export", "model.onnx", onnx)):
        command = [command, "network_def", "--filepath", str(models / name), *common, *more]
        run(command, ["inference"], tmp_path, **settings)
    settings |= {key: TINY[key] for key in ("device", "window_size", "find_lung")}
    found = {}
    for kind, folder in (("inference", weights), ("torchscript", models), ("onnx", models)):
        places = {"dataset_dir": str(cohort / "images"), "model_dir": str(folder), "output_dir": str(tmp_path / kind)}
        run(["run", "inferring"], WORKFLOWS[kind], tmp_path, **places, **settings)
        found[kind] = [np.asarray(nib.load(path).dataobj) for path in sorted((tmp_path / kind).glob("*.nii.gz"))]
    assert len(found["inference"]) == len(CASES) and len(np.unique(found["inference"][0])) > 1
    for kind in ("torchscript", "onnx"):
        assert all(np.array_equal(one, other) for one, other in zip(found["inference"], found[kind], strict=True))
    done = run(["run", "inferring"], WORKFLOWS["onnx"], tmp_path, check=False, **places | {"model_dir": "nowhere"})
    assert done.returncode != 0 and "nowhere/model.onnx does not exist; export it with" in done.stderr
