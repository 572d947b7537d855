"""The segmenter bundle: its configs, its metadata, and what its transforms make of a CT."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import verify_metadata, verify_net_in_out

from tests.lung_tissue_seg.bundle import CASES, CONFIGS, SCHEMA, TINY, WORKFLOWS, config, ids, workflow


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
        told = inference[key]
        assert train[key] == (told["otherwise"] if key == "spacing_mm" else told), key
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


def test_cases_and_epochs_that_monai_label_sets_reach_all_that_depends_on_them(tmp_path):
    """It knows nothing of datalist.json and max_epochs, and sets what they end up in; see docs/serving.md."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.json"))
    case = {"image": "a.nii.gz", "label": "b.nii.gz"}
    parser.update({"train::dataset::data": [case] * 3, "validate::dataset::data": [case], "cache_rate": 0})
    parser.update({"train::trainer::max_epochs": 3, "device": "cpu", "output_dir": str(tmp_path)})
    assert len(parser.get_parsed_content("train::sampler").data_source) == 3
    assert parser.get_parsed_content("ema_momentum") == 20 / 300
    assert parser.get_parsed_content("lr_scheduler").total_steps == 300
    last, _ = (one for one in parser.get_parsed_content("train::handlers") if type(one).__name__ == "ValidationHandler")
    assert last.interval == 3


def test_labels_return_exactly_to_the_geometry_of_the_input(cohort, tmp_path, monkeypatch):
    """Known labels stand in for a prediction at the input's own voxel size: each voxel must come back."""
    for number in range(len(CASES)):
        parser = ConfigParser()
        parser.read_config(str(CONFIGS / "inference.json"))
        image, label = (nib.load(cohort / folder / f"case{number}.nii.gz") for folder in ("images", "labels"))
        parser.update({"output_dir": str(tmp_path), "spacing_mm": [-1, -1, -1]})
        sample = parser.get_parsed_content("preprocessing")({"image": image.get_filename()})
        with monkeypatch.context() as patch:  # a map is no CT
            patch.setattr("scripts.loading.check_hu", lambda *given: None)
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
    cached = [{key: case[key].clone() for key in ("image", "label")} for case in loader.dataset.dataset._cache]
    batches = list(loader)
    for case, before in zip(loader.dataset.dataset._cache, cached):  # which the crops read without copying it
        assert all(torch.equal(case[key], before[key]) for key in before)
        assert len(case["image"].applied_operations) == len(before["image"].applied_operations)
        assert "label_cls_indices" in case
    assert len(batches) == TINY["epoch_length"]  # steps do not depend on the number of cases
    for batch in batches:
        assert set(batch) == {"image", "label", "case"}
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
    with pytest.raises(RuntimeError) as refusal:  # MONAI's, with ours as its cause
        flow.parser.get_parsed_content(f"{part}::dataset")
    assert isinstance(refusal.value.__cause__, ValueError) and text in str(refusal.value.__cause__)


def test_inference_needs_the_scripts_that_the_package_says():
    """``inference.json`` names them, and what they import of the bundle comes with them."""
    said = (CONFIGS.parent / "scripts/__init__.py").read_text()
    needed = set(re.findall(r"scripts\.(\w+)\.", (CONFIGS / "inference.json").read_text()))
    assert needed == {"batch", "cases", "loading", "lungs", "spacing", "trained"}
    for name in sorted(needed):
        needed |= set(re.findall(r"^from \.(\w+) import", (CONFIGS.parent / f"scripts/{name}.py").read_text(), re.M))
    first, second = re.search(r"Inference needs (.*?)\. Networks(.*?)\. All", said, re.DOTALL).groups()
    assert set(re.findall(r"``(\w+)``", first)) == needed
    overlays = "".join(path.read_text() for path in CONFIGS.glob("inference_*.json"))
    assert set(re.findall(r"``(\w+)``", second)) == set(re.findall(r"scripts\.(\w+)\.", overlays))
