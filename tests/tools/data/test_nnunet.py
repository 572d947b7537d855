"""nnU-Net's raw dataset: our cases and folds in its form, synthetic cases marked and never tested on."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.tools.fakes.cases import LABELS, Data, ct, save, tissue_map
from tools import __main__ as cli
from tools.data.nnunet import export_nnunet
from tools.io.files import InputError
from tools.io.volume import SYNTHETIC_MARK, load_ct, save_nifti


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


@pytest.fixture
def augmented(data):
    """A datalist with two painted cases, made of training patients of fold 0, as `augment` writes it."""
    data.run()
    content = json.loads((data.output / "datalist.json").read_text())
    real = [item for item in content["training"] if item["fold"] != 0]
    for number, item in enumerate(real[:2]):
        name = f"{item['patient']}_s00{number}"
        _, image = load_ct(data.output / item["image"])
        save_nifti(ct(9 + number), image, data.root / f"painted/{name}.nii.gz", f"{SYNTHETIC_MARK} cbmat")
        shutil.copy(data.output / item["label"], data.root / f"painted/{name}_map.nii.gz")
        files = {"image": f"../painted/{name}.nii.gz", "label": f"../painted/{name}_map.nii.gz"}
        content["training"].append(item | files | {"fold": -1, "synthetic": True})
    path = data.output / "augmented.json"
    path.write_text(json.dumps(content | {"held_out_fold": 0}))
    return path


def read(folder):
    return (json.loads((folder / name).read_text()) for name in ("dataset.json", "splits_final.json"))


def test_folds_and_files_are_ours(data, tmp_path):
    datalist = data.run(patients=data.csv())
    output = tmp_path / "raw/Dataset042_lung"
    words = ["--datalist", str(data.output / "datalist.json"), "--output", str(output)]
    assert cli.main(["export_nnunet", *words]) == 0
    description, splits = read(output)
    assert description["labels"] == LABELS and description["channel_names"] == {"0": "CT"}
    assert description["numTraining"] == 6 and description["synthetic"] == []
    folds = {item["image"].rsplit("/", 1)[1].removesuffix(".nii.gz"): item["fold"] for item in datalist["training"]}
    assert len(splits) == 3
    for fold, split in enumerate(splits):
        assert split["val"] == [case for case in folds if folds[case] == fold]
        assert split["train"] == [case for case in folds if folds[case] != fold]
    for case in folds:
        for ours, theirs in ((data.images, f"imagesTr/{case}_0000"), (data.labels, f"labelsTr/{case}")):
            mine, other = nib.load(ours / f"{case}.nii.gz"), nib.load(output / f"{theirs}.nii.gz")
            np.testing.assert_array_equal(mine.dataobj, other.dataobj)
            np.testing.assert_allclose(mine.affine, other.affine)
    assert sorted(path.name for path in output.iterdir()) == [
        "dataset.json",
        "imagesTr",
        "labelsTr",
        "splits_final.json",
    ]


def test_synthetic_cases_are_marked_and_trained_on_in_their_fold_alone(augmented, tmp_path):
    export_nnunet(augmented, tmp_path / "Dataset001_lung")
    description, splits = read(tmp_path / "Dataset001_lung")
    synthetic = description["synthetic"]
    assert len(synthetic) == 2 and all(name.startswith("synthetic_case") for name in synthetic)
    assert set(synthetic) <= set(splits[0]["train"])
    assert not set(synthetic) & {name for split in splits[1:] for part in split.values() for name in part}
    assert not set(synthetic) & set(splits[0]["val"]) and description["numTraining"] == 8
    for kind, suffix in (("imagesTr", "_0000"), ("labelsTr", "")):
        marks = {
            path.name: nib.load(path).header["descrip"].item().startswith(SYNTHETIC_MARK.encode())
            for path in (tmp_path / "Dataset001_lung" / kind).iterdir()
        }
        assert {name for name in marks if marks[name]} == {f"{name}{suffix}.nii.gz" for name in synthetic}


def test_a_real_case_is_not_synthetic_for_its_name(data, tmp_path):
    for folder in (data.images, data.labels):
        (folder / "case0.nii.gz").rename(folder / "synthetic_0.nii.gz")
    data.run()
    export_nnunet(data.output / "datalist.json", tmp_path / "Dataset001_lung")
    description, splits = read(tmp_path / "Dataset001_lung")
    assert description["synthetic"] == [] and any("synthetic_0" in split["val"] for split in splits)


def test_unlabelled_voxels_get_the_label_that_nnunet_ignores(data, tmp_path):
    output = tmp_path / "Dataset001_lung"
    scheme = dict(enumerate(["unlabelled", *list(LABELS)[1:]]))
    data.run(label_map=scheme, folds=2)
    export_nnunet(data.output / "datalist.json", output)
    description, _ = read(output)
    assert description["labels"] == LABELS | {"ignore": 6}
    own, written = nib.load(data.label(0)).get_fdata(), nib.load(output / "labelsTr/case0.nii.gz").get_fdata()
    np.testing.assert_array_equal(written, np.where(own == 0, 6, own))


def test_synthetic_cases_of_an_unknown_fold_are_refused(augmented, tmp_path):
    content = json.loads(augmented.read_text())
    del content["held_out_fold"]
    augmented.write_text(json.dumps(content))
    with pytest.raises(InputError, match="holds the synthetic case synthetic_case._s000, but no held_out_fold says"):
        export_nnunet(augmented, tmp_path / "Dataset001_lung")
    del content["training"][-1]["synthetic"]
    augmented.write_text(json.dumps(content | {"held_out_fold": 0}))
    with pytest.raises(InputError, match="_s001.nii.gz says SYNTHETIC in its header, but its item in .* does not"):
        export_nnunet(augmented, tmp_path / "Dataset001_lung")
    assert not (tmp_path / "Dataset001_lung").exists()


def test_two_cases_of_one_name_and_maps_of_another_geometry_are_refused(data, tmp_path):
    data.run()
    content = json.loads((data.output / "datalist.json").read_text())
    save(ct(7), data.root / "more/case0.nii.gz")
    content["training"].append(content["training"][0] | {"image": "../more/case0.nii.gz"})
    (data.output / "twice.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="images/case0.nii.gz and .*more/case0.nii.gz would both be named case0"):
        export_nnunet(data.output / "twice.json", tmp_path / "Dataset001_lung")
    save(tissue_map(), data.label(3), np.eye(4))
    with pytest.raises(InputError, match="labels/case3.nii.gz has another affine than .*images/case3.nii.gz"):
        export_nnunet(data.output / "datalist.json", tmp_path / "Dataset001_lung")
    assert not (tmp_path / "Dataset001_lung").exists()


@pytest.mark.parametrize("name", ["raw", "Dataset1_lung"])
def test_a_name_that_nnunet_does_not_take_is_refused(name, data, tmp_path):
    data.run()
    with pytest.raises(
        InputError, match=f"{name} must be named as nnU-Net wants it, nnunet_raw/Dataset001_lung for one"
    ):
        export_nnunet(data.output / "datalist.json", tmp_path / name)
    assert not (tmp_path / name).exists()
