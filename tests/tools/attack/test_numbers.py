"""Odd but valid CTs through the real commands: finite numbers come out, or one sentence that names the case."""

import contextlib
import csv
import io
import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch

import tools.__main__ as cli
from tests.tools.fakes.chest import LABELS, chest, lungs, save, segmenter_weights, synthesizer_weights
from tools.attack.jobs import SMALL_SEGMENTER, SMALL_SYNTHESIZER
from tools.workflows.run import read_bundle

pytestmark = pytest.mark.usefixtures("without_ink")
GLASS, FIBROSIS = LABELS["ground_glass"], LABELS["fibrosis"]
VOXEL_MM = 1.4  # in plane, as the synthesizer takes


def affine(slices_mm: float = 6.0) -> np.ndarray:
    return np.diag([-VOXEL_MM, -VOXEL_MM, slices_mm, 1.0])


def with_lesion() -> np.ndarray:
    label = lungs()
    label[66:74, 36:44, 4:6] = GLASS
    return label


def three_voxels() -> np.ndarray:
    label = lungs()
    label[69, 40, 4:7], label[26:29, 40, 5] = GLASS, FIBROSIS
    return label


def one_lung() -> np.ndarray:
    label = with_lesion()
    label[:48] = 0
    return label


def cut_by_the_view(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array[20:76, 25:])  # both lungs run out at the sides, and before


# Name to tissue map, mm between slices, and what becomes of map and CT.
ODD = {
    "ordinary": (with_lesion(), 6.0, np.asarray),
    "cut": (with_lesion(), 6.0, cut_by_the_view),
    "one_lung": (one_lung(), 6.0, np.asarray),
    "thin": (with_lesion(), 0.4, lambda array: np.repeat(array, 15, axis=2)),
    "thick": (with_lesion(), 10.0, np.asarray),
    "no_healthy": (np.where(lungs() > 0, FIBROSIS, 0).astype(np.uint8), 6.0, np.asarray),
    "three_voxels": (three_voxels(), 6.0, np.asarray),
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Every odd case, one patient each."""
    folder = tmp_path_factory.mktemp("odd")
    for seed, (name, (label, slices_mm, change)) in enumerate(ODD.items()):
        save(change(chest(label, seed)), folder / f"images/{name}.nii.gz", affine(slices_mm))
        save(change(label), folder / f"labels/{name}.nii.gz", affine(slices_mm))
    call("dataset", "--images", folder / "images", "--labels", folder / "labels", "--output", folder / "data",
         "--folds", "2")  # fmt: skip
    return folder


def call(*words) -> str:
    """Run a command, which must succeed, and return what it said."""
    code, said = ended(*words)
    assert code == 0, said
    return said


def ended(*words) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main([str(word) for word in words])
    assert "Traceback" not in said.getvalue()
    return code, said.getvalue()


def numbers(value) -> list[float]:
    """Return every number in what JSON holds."""
    if isinstance(value, dict | list):
        return [number for entry in (value.values() if isinstance(value, dict) else value) for number in numbers(entry)]
    return [value] if isinstance(value, int | float) else []


def test_dataset_and_quantify_give_finite_numbers_for_every_odd_case(cohort, tmp_path):
    card = json.loads((cohort / "data/data_card.json").read_text(encoding="utf-8"))
    assert all(map(math.isfinite, numbers(card)))
    call("quantify", "--images", cohort / "images", "--tissues", cohort / "labels", "--output", tmp_path / "q")
    cases = json.loads((tmp_path / "q/quantification.json").read_text(encoding="utf-8"))["cases"]
    assert set(cases) == set(ODD) and all(map(math.isfinite, numbers(cases)))
    for name, (label, slices_mm, change) in ODD.items():
        wanted = np.count_nonzero(change(label) == GLASS) * VOXEL_MM**2 * slices_mm / 1000
        assert cases[name]["whole"]["ground_glass_ml"] == pytest.approx(wanted, abs=0.01), name
    assert cases["no_healthy"]["whole"]["healthy_ml"] == 0
    assert "nan" not in (tmp_path / "q/quantification.csv").read_text(encoding="utf-8").lower()


@pytest.mark.slow
def test_segment_labels_every_odd_case_on_its_grid(cohort, tmp_path):
    weights = segmenter_weights(tmp_path / "weights")  # random ones find no lung
    for name, (label, slices_mm, change) in ODD.items():
        save((change(label) > 0).astype(np.uint8), tmp_path / f"lungs/{name}.nii.gz", affine(slices_mm))
    call(
        "segment", cohort / "images", "--weights", weights, "--lung_dir", tmp_path / "lungs", "--output", tmp_path / "s"
    )
    for name in ODD:
        found, lung = (nib.load(tmp_path / path) for path in (f"s/{name}_tissues.nii.gz", f"lungs/{name}.nii.gz"))
        assert np.allclose(found.affine, lung.affine)
        assert np.array_equal(np.asarray(found.dataobj) > 0, np.asarray(lung.dataobj) > 0), name


def test_maps_are_drawn_from_odd_cases_or_it_is_said_why_not(cohort, tmp_path):
    for fold in (0, 1):
        datalist, output = cohort / "data/datalist.json", tmp_path / f"{fold}"
        code, said = ended("maps", "--datalist", datalist, "--fold", fold, "--output", output)
        if code:  # its training cases have a single fibrosis, of three voxels
            assert said.endswith("all lesions of fibrosis have less than the 24 voxels that one needs to be moved\n")
            assert fold == 0 and not output.exists()
            continue
        for path in (output / "maps").glob("*.nii.gz"):
            assert set(np.unique(nib.load(path).dataobj)) <= set(LABELS.values())
        with open(output / "statistics.csv", encoding="utf-8") as stream:
            assert list(csv.DictReader(stream))


@pytest.mark.slow
def test_paint_paints_finite_hu_or_says_why_not(cohort, tmp_path):
    weights, painted = synthesizer_weights(tmp_path / "weights"), []
    for name in ODD:
        ct, out = cohort / f"images/{name}.nii.gz", tmp_path / name
        words = ["--labels", cohort / f"labels/{name}.nii.gz", "--tissue", "emphysema", "--steps", "1"]
        code, said = ended("paint", ct, *words, "--volume_ml", "0.5", "--weights", weights, "--output", out)
        if code:
            assert said.startswith("paint: 0.5 ml of emphysema ") and said.count("\n") == 1 and not out.exists(), said
            continue
        after, before = (np.asarray(nib.load(path).dataobj) for path in (out / f"{name}_painted.nii.gz", ct))
        assert np.isfinite(after).all() and (after != before).any() and after.min() > -1100
        painted.append(name)
    assert len(painted) >= 4 and "no_healthy" not in painted


@pytest.mark.parametrize("value", [-1000, 0, 60])
def test_a_constant_ct_is_refused_by_every_command(tmp_path, value):
    ct = save(np.full(lungs().shape, value, np.int16), tmp_path / "images/flat.nii.gz", affine())
    label = save(lungs(), tmp_path / "labels/flat.nii.gz", affine())
    save(chest(lungs()), tmp_path / "images/good.nii.gz", affine())  # dataset wants two patients
    save(lungs(), tmp_path / "labels/good.nii.gz", affine())
    folders = ["--images", ct.parent]
    for words in (
        ["dataset", *folders, "--labels", label.parent, "--folds", "2"],
        ["quantify", *folders, "--tissues", label.parent],
        ["segment", ct],
        ["paint", ct, "--labels", label, "--tissue", "emphysema", "--volume_ml", "1"],
    ):
        code, said = ended(*words, "--output", tmp_path / words[0])
        assert code == 1 and f"{ct} ranges from {value} to {value}, which cannot be HU" in said, said
        assert (tmp_path / words[0]).exists() == (words[0] == "quantify")  # which goes on with the good case


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bundle", "settings"), [("lung_tissue_seg", SMALL_SEGMENTER), ("difflung_synthesis", SMALL_SYNTHESIZER)]
)
def test_trainings_on_odd_cases_end_with_finite_weights(cohort, tmp_path, bundle, settings):
    parser = read_bundle(bundle, "train.json")
    places = {"dataset_dir": str(cohort / "data"), "model_dir": str(tmp_path), "output_dir": str(tmp_path / "eval")}
    steps = {"max_epochs": 1, "epoch_length": 6, "val_interval": 1, "num_workers": 0, "progress_bar": False}
    for key, value in (places | settings | steps | {"fold": 1}).items():
        parser[key] = value
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("train::trainer").run()
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.isfinite(tensor.float()).all() for tensor in weights.values() if torch.is_tensor(tensor))
