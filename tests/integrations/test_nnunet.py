"""nnU-Net v2 takes what `tools export_nnunet` writes: its check is content, its planner keeps our folds."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.integrations.consumers import ROOT, python_of, run
from tools.io.volume import SYNTHETIC_MARK, load_ct, save_nifti

pytestmark = pytest.mark.nnunet
VERIFY = """
import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
if __name__ == "__main__":
    verify_dataset_integrity(sys.argv[1], 1)
"""


@pytest.fixture(scope="module")
def raw(cohort, tmp_path_factory) -> Path:
    """The cohort as a raw dataset, with a painted case of fold 1 and voxels that nobody labelled."""
    folder = tmp_path_factory.mktemp("nnunet")
    content = json.loads((cohort / "datalist.json").read_text())
    for item in content["training"]:
        item |= {key: str((cohort / item[key]).resolve()) for key in ("image", "label")}
    source = next(item for item in content["training"] if item["fold"] == 0)
    hu, image = load_ct(source["image"])
    label = np.asarray(nib.load(source["label"]).dataobj).copy()
    label[:5] = 255
    save_nifti(hu.astype(np.int16), image, folder / "painted.nii.gz", f"{SYNTHETIC_MARK} cbmat")
    save_nifti(label, image, folder / "map.nii.gz", f"{SYNTHETIC_MARK} cbmat")
    painted = {"image": str(folder / "painted.nii.gz"), "label": str(folder / "map.nii.gz")}
    content["training"].append(source | painted | {"fold": -1, "synthetic": True})
    (folder / "datalist.json").write_text(json.dumps(content | {"held_out_fold": 1}))
    words = ["--datalist", folder / "datalist.json", "--output", folder / "nnunet_raw/Dataset007_lung"]
    run(sys.executable, "-m", "tools", "export_nnunet", *words, cwd=ROOT)
    return folder / "nnunet_raw/Dataset007_lung"


def nnunet(raw: Path, program: str, *words: object, check: bool = True):
    """Run a program of nnU-Net's environment, whose three folders lie beside each other."""
    folders = {f"nnUNet_{kind}": str(raw.parents[1] / f"nnunet_{kind}") for kind in ("raw", "preprocessed", "results")}
    program = python_of("nnunet").with_name(program)
    return run(program, *words, check=check, OMP_NUM_THREADS="1", **folders)


def test_nnunets_own_check_finds_nothing_wrong(raw):
    done = nnunet(raw, "python", "-c", VERIFY, raw)
    assert "verify_dataset_integrity Done" in done.stdout
    assert not {"Error", "Warning"} & set(done.stdout.replace(":", " ").split())


def test_nnunets_own_check_sees_a_label_that_dataset_json_does_not_name(raw):
    path = next((raw / "labelsTr").glob("phantom*"))
    before, image = path.read_bytes(), nib.load(path)
    values = np.asarray(image.dataobj).copy()
    values[0, 0, 0] = 9
    nib.save(nib.Nifti1Image(values, image.affine), path)
    done = nnunet(raw, "python", "-c", VERIFY, raw, check=False)
    path.write_bytes(before)
    assert done.returncode != 0 and "Unexpected labels found in file" in done.stdout


def test_nnunet_plans_and_keeps_our_folds(raw):
    words = ["-d", 7, "--verify_dataset_integrity", "-c", "2d", "-npfp", 1, "-np", 1]
    nnunet(raw, "nnUNetv2_plan_and_preprocess", *words)
    made = raw.parents[1] / "nnunet_preprocessed/Dataset007_lung"
    splits = json.loads((made / "splits_final.json").read_text())
    assert splits == json.loads((raw / "splits_final.json").read_text())
    synthetic = json.loads((raw / "dataset.json").read_text())["synthetic"]
    assert synthetic == ["synthetic_painted"] and "synthetic_painted" in splits[1]["train"]
    assert "synthetic_painted" not in splits[0]["train"] + splits[0]["val"] + splits[1]["val"]
    assert len(list((made / "nnUNetPlans_2d").glob("*.pkl"))) == 9
