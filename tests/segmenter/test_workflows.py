"""The segmenter bundle: its configs, its geometry and its workflows, run as a user runs them."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import verify_metadata, verify_net_in_out

BUNDLE = Path(__file__).resolve().parents[1] / "bundles/lung_tissue_seg"
CONFIGS = BUNDLE / "configs"
SCHEMA = Path(__file__).resolve().parents[2] / "shared/meta_schema_20240725.json"
WORKFLOWS = {
    "train": ["train"],
    "evaluate": ["train", "evaluate"],
    "inference": ["inference"],
    "torchscript": ["inference", "inference_torchscript"],
    "onnx": ["inference", "inference_onnx"],
    "tensorrt": ["inference", "inference_trt"],
    "volume": ["train", "volume"],
    "multi_gpu_train": ["train", "multi_gpu_train"],
    "multi_gpu_evaluate": ["train", "evaluate", "multi_gpu_evaluate"],
}
TINY = {
    **{"device": "cpu", "patch_size": 32, "window_size": [32, 32], "network_channels": [4, 4, 4, 4, 4]},
    **{"find_lung": False},
    **{"batch_size": 4, "max_epochs": 1, "epoch_length": 2, "val_interval": 1},
}
# Shape, voxel size in mm and order of the axes; odd sizes, one single slice, every axis somewhere flipped.
CASES = [((43, 37, 7), (1.3, 1.1, 3.0), (0, 1, 2)), ((31, 45, 1), (1.7, 1.7, 5.0), (1, 0, 2)),
         ((9, 40, 35), (4.0, 1.2, 1.4), (2, 0, 1)), ((40, 40, 6), (2.0, 2.0, 4.0), (0, 1, 2))]  # fmt: skip
HU = [-1000, -850, -600, -300, -950, 50]


def write_cohort(folder: Path) -> list[Path]:
    """Write four tiny labelled CTs with oblique affines; only the last has consolidation, and it is never validated."""
    folder.mkdir(parents=True)
    items, images = [], []
    for number, (shape, spacing_mm, axes) in enumerate(CASES):
        rng = np.random.default_rng(number)
        blocks = rng.integers(0, 5, [-(-size // 6) for size in shape])
        label = np.kron(blocks, np.ones((6, 6, 6), int))[: shape[0], : shape[1], : shape[2]].astype(np.uint8)
        if number == 3:
            label[:6, :6, :3] = 5
        hu = np.asarray(HU)[label] + rng.normal(0, 20, shape)
        a, b = 0.3 * number + 0.1, 0.2
        rotation = np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])
        rotation = rotation @ np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
        affine = np.eye(4)
        affine[:3, :3] = rotation[:, list(axes)] @ np.diag(np.array(spacing_mm) * [-1, -1, 1])
        affine[:3, 3] = [10, -20.5, 300.25]
        images.append(folder / "images" / f"case{number}.nii.gz")
        mask = folder / "labels" / f"case{number}.nii.gz"
        for path, data in ((images[-1], hu.astype(np.int16)), (mask, label)):
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(data, affine), path)
        item = {"image": f"images/case{number}.nii.gz", "label": f"labels/case{number}.nii.gz", "patient": f"p{number}"}
        extra = {"age": None, "history": "smoker"} if number % 2 else {"synthetic": True}
        items.append(item | extra | {"fold": [0, 0, 1, -1][number]})
    (folder / "datalist.json").write_text(json.dumps({"labels": {}, "training": items}))
    return images


def config(name: str) -> Path:
    """Return a config file; variants are YAML."""
    return next(CONFIGS.glob(f"{name}.*"))


def run(command: list[str], names: list[str], cwd: Path, launcher: tuple = (), check: bool = True, **overrides):
    """Run the bundle in a process of its own, from another folder."""
    files = [str(config(name)) for name in names]
    line = [sys.executable, *launcher, "-m", "monai.bundle", *command, "--bundle_root", str(BUNDLE)]
    line += ["--config_file", files[0] if len(files) == 1 else str(files)]
    for key, value in overrides.items():
        line += [f"--{key}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, env=environment)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def workflow(name: str, kind: str, **overrides) -> ConfigWorkflow:
    """Return one of the bundle's workflows, not yet initialized."""
    files = [str(config(part)) for part in WORKFLOWS[name]]
    return ConfigWorkflow(files, workflow_type=kind, logging_file=False, bundle_root=str(BUNDLE), **overrides)


def read_rows(path: Path) -> dict[str, list[float]]:
    """Return file name to Dice per tissue."""
    with open(path, newline="") as file:
        return {Path(row[0]).name: [float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]}


def ids(config, prefix: str = "") -> list[tuple[str, str]]:
    """Return every string of a config with its id."""
    if isinstance(config, str):
        return [(prefix, config)]
    entries = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    return [pair for key, value in entries for pair in ids(value, f"{prefix}::{key}" if prefix else str(key))]


@pytest.fixture(autouse=True, scope="module")
def scripts_of_this_bundle():
    """Both bundles call their package ``scripts``; a process holds one, and other tests want the synthesizer's."""
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "scripts"}
    sys.path.insert(0, str(BUNDLE))
    yield
    sys.path.remove(str(BUNDLE))
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    sys.modules.update(others)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter") / "cohort"
    write_cohort(folder)
    return folder


@pytest.fixture(scope="module")
def trained(cohort) -> Path:
    """Run the training once; its folder holds model.pt and the metrics."""
    output = cohort.parent / "trained"
    command = ["run", "training"]
    run(command, ["train"], cohort, dataset_dir=str(cohort), model_dir=str(output), output_dir=str(output), **TINY)
    return output


@pytest.mark.parametrize(("name", "kind"), [("train", "train"), ("evaluate", "train"), ("inference", "infer")])
def test_workflows_have_the_properties_that_consumers_read(name, kind, cohort, tmp_path):
    """Checking a property builds it, so it needs a data set."""
    settings = {key: TINY[key] for key in ("device", "network_channels")} | {"output_dir": str(tmp_path)}
    folder = cohort / "images" if kind == "infer" else cohort
    flow = workflow(name, kind, dataset_dir=str(folder), **settings)
    flow.initialize()
    assert flow.check_properties() == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_expressions_are_short_and_refer_to_ids_that_exist(name):
    parser = ConfigParser()
    parser.read_config([str(config(part)) for part in WORKFLOWS[name]])
    strings = ids(parser.get())
    assert len(strings) > 30
    for where, text in strings:
        assert "lambda" not in text, where
        assert not text.startswith("$") or len(text) <= 80, f"{where} is longer than 80 characters: {text}"
        assert not re.fullmatch(r"[-+0-9.eE]*[0-9][-+0-9.eE]*|None|true|false", text), f"{where} is text: {text!r}"
        if text.startswith(("$", "@", "%")):
            for reference in re.findall(r"[@%](\w+(?:::\w+)*)", text):
                parser[reference]  # raises KeyError


def test_ids_that_the_tools_override_exist():
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.json"))
    assert parser["labels"]["consolidation"] == 5
    for key in (
        *("bundle_root", "dataset_dir", "datalist", "fold", "seed", "device", "model_dir", "output_dir", "labels"),
        *("hu_window", "spacing_mm", "patch_size", "batch_size", "max_epochs", "epoch_length", "learning_rate"),
        *("val_interval", "num_workers", "network_channels"),
    ):
        assert key in parser, key


def test_train_inference_and_metadata_share_their_values():
    train, inference = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train", "inference"))
    for key in ("labels", "hu_window", "spacing_mm", "window_size", "find_lung", "network_channels", "network_def"):
        assert train[key] == inference[key], key
    channels = json.loads((CONFIGS / "metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert {name: int(value) for value, name in channels["channel_def"].items()} == train["labels"]
    assert channels["num_channels"] == len(train["labels"])


def test_metadata_is_valid(tmp_path):
    if not SCHEMA.is_file():
        pytest.skip(f"{SCHEMA} is not there; the product does not depend on it")
    copy = tmp_path / "schema.json"
    copy.write_bytes(SCHEMA.read_bytes())
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(copy))


def test_network_takes_and_gives_what_metadata_says():
    files = {"config_file": str(CONFIGS / "inference.json"), "meta_file": str(CONFIGS / "metadata.json")}
    verify_net_in_out("network_def", device="cpu", n=2, **files)


def test_one_ct_becomes_the_same_tensor_in_training_validation_and_inference(cohort):
    """The spacing, the orientation and the HU window must agree; training may pad, which a small patch avoids."""
    parsers = {name: ConfigParser() for name in ("train", "inference")}
    for name, parser in parsers.items():
        parser.read_config(str(CONFIGS / f"{name}.json"))
        parser.update({"spacing_mm": [1.6, 1.6, -1], "device": "cpu"})
    parsers["train"]["patch_size"] = 1
    parsers["train"]["fixed"] = {"_target_": "Compose", "transforms": "@train::fixed_transforms"}
    for number in range(len(CASES)):
        names = {"image": "images", "label": "labels"}
        case = {key: str(cohort / folder / f"case{number}.nii.gz") for key, folder in names.items()} | {"age": None}
        training = parsers["train"].get_parsed_content("fixed")(case)
        validation = parsers["train"].get_parsed_content("validate::preprocessing")(case)
        inference = parsers["inference"].get_parsed_content("preprocessing")({"image": case["image"]})
        assert 0 <= inference["image"].min() < inference["image"].max() <= 1
        for other in (training, validation):
            assert torch.equal(other["image"].as_tensor(), inference["image"].as_tensor())
        assert training["label"].shape == training["image"].shape
        assert np.array_equal(validation["label"][0], nib.load(case["label"]).dataobj)


def test_image_path_of_monai_label_passes_the_spacing(cohort):
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    path = str(cohort / "images/case0.nii.gz")
    sample = parser.get_parsed_content("preprocessing")({"image": path, "image_path": path})
    assert sample["image_path"] == path


def test_labels_return_exactly_to_the_geometry_of_the_input(cohort, tmp_path):
    """Known labels stand in for a prediction at the input's own voxel size: each voxel must come back."""
    for number in range(len(CASES)):
        parser = ConfigParser()
        parser.read_config(str(CONFIGS / "inference.json"))
        image, label = (nib.load(cohort / folder / f"case{number}.nii.gz") for folder in ("images", "labels"))
        parser.update({"output_dir": str(tmp_path), "spacing_mm": [-1, -1, -1]})
        sample = parser.get_parsed_content("preprocessing")({"image": image.get_filename()})
        oriented = parser.get_parsed_content("preprocessing")({"image": label.get_filename()})
        scaled = oriented["image"].as_tensor() * 1324 - 1024  # back from the HU window
        sample["pred"] = scaled.round().byte()
        parser.get_parsed_content("postprocessing")(sample)
        saved = nib.load(tmp_path / f"case{number}_tissues.nii.gz")
        assert saved.shape == image.shape
        assert np.allclose(saved.affine, image.affine, rtol=0, atol=1e-6)
        assert np.array_equal(saved.dataobj, label.dataobj)


def test_training_tensors_are_patches_without_metadata(cohort):
    flow = workflow("train", "train", dataset_dir=str(cohort), fold=1, **TINY)
    flow.initialize()
    loader = flow.parser.get_parsed_content("train::dataloader")
    cached = [{key: case[key].clone() for key in ("image", "label")} for case in loader.dataset._cache]
    batches = list(loader)
    for case, before in zip(loader.dataset._cache, cached):  # which the crops read without copying it
        assert all(torch.equal(case[key], before[key]) for key in before)
        assert len(case["image"].applied_operations) == len(before["image"].applied_operations)
        assert "label_cls_indices" in case
    assert len(batches) == TINY["epoch_length"]  # steps do not depend on the number of cases
    for batch in batches:
        assert set(batch) == {"image", "label"}
        assert batch["image"].shape == batch["label"].shape == (4, 1, 32, 32)
        assert type(batch["image"]) is torch.Tensor
    assert [Path(case["image"]).name for case in flow.val_dataset_data] == ["case2.nii.gz"]
    assert len(flow.train_dataset_data) == 3


@pytest.mark.parametrize(("part", "text"), [("train", "every case is in the fold"), ("validate", "no case is")])
def test_an_empty_part_of_the_datalist_is_refused(cohort, tmp_path, part, text):
    content = json.loads((cohort / "datalist.json").read_text())
    for item in content["training"]:
        item["fold"] = 3 if part == "train" else -1
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    flow = workflow("train", "train", dataset_dir=str(tmp_path), fold=3, **TINY)
    flow.initialize()
    with pytest.raises(SystemExit, match=text):
        flow.parser.get_parsed_content(f"{part}::dataset")


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
    weights = []
    for folder, runs in (("straight", [{}]), ("stopped", [{"train::trainer::max_epochs": 1}, {"resume": True}])):
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
