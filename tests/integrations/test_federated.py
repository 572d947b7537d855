"""NVFlare's simulator trains both bundles at two sites, and what comes out is what the bundles' inference takes."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.integrations.consumers import python_of, run_workflow
from tools.bundles import BUNDLES
from tools.federated.federated import federated
from tools.tissues import tissue_labels

pytestmark = pytest.mark.federated

OVERRIDES = {
    "lung_tissue_seg": {"epoch_length": 10},
    "difflung_synthesis": {"epoch_length": 3, "batch_size": 1, "measured_patches": 64, "num_steps": 2},
}


@pytest.fixture(scope="session")
def sites(cohort, tmp_path_factory) -> list[Path]:
    """Two datalists: every second patient of each fold of the cohort."""
    content = json.loads((cohort / "datalist.json").read_text())
    items = sorted(content["training"], key=lambda item: item["fold"])
    paths = []
    for number, name in enumerate(("north", "south")):
        own = [
            item | {kind: str((cohort / item[kind]).resolve()) for kind in ("image", "label")}
            for item in items[number::2]
        ]
        assert {item["fold"] for item in own} == {0, 1}
        paths.append(tmp_path_factory.mktemp(name) / "datalist.json")
        paths[-1].write_text(json.dumps(content | {"training": own}))
    return paths


@pytest.fixture(scope="module", params=OVERRIDES)
def federation(request, sites, tmp_path_factory) -> tuple[str, Path]:
    """The bundle's name, and what two rounds of a federation have written."""
    output = tmp_path_factory.mktemp("federation") / "out"
    datalists = ",".join(map(str, sites))
    overrides = OVERRIDES[request.param] | {"device": "cpu"}
    federated(datalists, request.param, output, python=python_of("federated"), overrides=overrides)
    return request.param, output


def rows(output: Path) -> list[list[dict]]:
    """Return the rows of each round in which steps were made."""
    with open(output / "rounds.csv", newline="") as stream:
        found = [row for row in csv.DictReader(stream) if int(row["steps"])]
    return [[row for row in found if row["round"] == number] for number in sorted({row["round"] for row in found})]


def test_two_processes_train_from_the_same_weights_which_each_round_changes(federation):
    name, output = federation
    rounds = rows(output)
    assert len(rounds) == 2 and all(len(sites) == 2 for sites in rounds)
    assert all(int(row["steps"]) == OVERRIDES[name]["epoch_length"] for sites in rounds for row in sites)
    assert all(one["process"] != other["process"] for one, other in rounds)
    assert all(one["received_sha256"] == other["received_sha256"] for one, other in rounds)
    assert all(one["sent_sha256"] != other["sent_sha256"] for one, other in rounds)
    assert rounds[0][0]["received_sha256"] != rounds[1][0]["received_sha256"]
    start, end = weights(output / "start.pt"), global_weights(output)
    changed = [key for key in start if key.endswith("weight") and not torch.equal(start[key], end[key])]
    assert any(key.startswith("network.") for key in changed) and any(key.startswith("average.") for key in changed)


def test_the_shared_weights_are_validated_at_each_site(federation):
    name, output = federation
    metric = {"lung_tissue_seg": "val_mean_dice", "difflung_synthesis": "hu_wasserstein"}[name]
    first, second = rows(output)
    assert all(row[metric] == "" for row in first) and all(float(row[metric]) > 0 for row in second)


def test_the_server_holds_tensors_of_known_names_and_nothing_that_names_a_patient(federation, sites):
    name, output = federation
    server = output / "nvflare" / name / "server"
    files = [path for path in server.rglob("*") if path.is_file()]
    assert len(files) > 5
    words = [path.parent.name for path in sites]
    words += [Path(item["image"]).name for path in sites for item in json.loads(path.read_text())["training"]]
    words += [item["patient"] for path in sites for item in json.loads(path.read_text())["training"]]
    for path in files:
        content = path.read_bytes()
        assert not [word for word in words if word.encode() in content], path
    assert weights(output / "start.pt").keys() == global_weights(output).keys()


def test_a_real_federation_gets_the_client_that_was_simulated(federation):
    name, output = federation
    job = output / "job" / name / "app"
    simulated = output / f"nvflare/{name}/site-1/simulate_job/app_site-1/custom"
    for file in ("client.py", "federated_settings.json"):
        assert (job / "custom" / file).read_bytes() == (simulated / file).read_bytes()
    command = json.loads((job / "config/config_fed_client.json").read_text())["executors"][0]["executor"]["args"]
    assert command["command"][-2:] == ["--site", "/srv/federated/site.json"]
    assert str(output) not in "".join(path.read_text() for path in job.rglob("*.json"))


def test_the_result_is_the_average_that_inference_loads_and_it_labels_or_paints(federation, cohort, tmp_path):
    name, output = federation
    end, model = global_weights(output), weights(output / "model.pt")
    for key, value in model.items():
        if torch.is_tensor(value) and value.is_floating_point():
            assert torch.equal(value, end[f"average.{key}"])
    root = tmp_path / name
    shutil.copytree(BUNDLES / name, root, ignore=shutil.ignore_patterns("__pycache__", "eval", "*.pt"))
    shutil.copy(output / "model.pt", root / "models/model.pt")
    case = sorted((cohort.parent / "images").iterdir())[0].name
    kinds = ("images",) if name == "lung_tissue_seg" else ("images", "labels")
    for kind in kinds:
        (tmp_path / "data" / kind).mkdir(parents=True)
        shutil.copy(cohort.parent / kind / case, tmp_path / "data" / kind)
    data = tmp_path / "data/images"
    if name == "difflung_synthesis":
        data = tmp_path / "data"
        paint_target(data / "labels" / case, data / "targets" / case)
    run_workflow(root, ["inference.json"], dataset_dir=data, output_dir=tmp_path / "out")
    (written,) = (path for path in (tmp_path / "out").rglob("*.nii.gz"))
    image, answer = nib.load(tmp_path / "data/images" / case), nib.load(written)
    assert answer.shape == image.shape and np.allclose(answer.affine, image.affine, atol=1e-4)
    values = np.asarray(answer.dataobj)
    if name == "lung_tissue_seg":
        assert set(np.unique(values)) <= set(tissue_labels().values()) and values.any()
    else:
        assert (model["tissue_presence"] > 0).all() and (model["tissue_mean"].diff(dim=2) >= 0).all()
        where = np.asarray(nib.load(data / "targets" / case).dataobj) != np.asarray(
            nib.load(data / "labels" / case).dataobj
        )
        changed = values != np.asarray(image.dataobj)
        near = ndimage.binary_dilation(where, np.ones((5, 5, 1)))  # the region's margin is of two voxels
        assert changed[where].mean() > 0.9 and not changed[~near].any()


def weights(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def global_weights(output: Path) -> dict:
    """Return what the server wrote last."""
    (path,) = (output / "nvflare").rglob("FL_global_model.pt")
    return weights(path)["model"]


def paint_target(label: Path, target: Path) -> None:
    """Write a map that wants ground glass where the middle slices of a map have healthy lung."""
    file, labels = nib.load(label), tissue_labels()
    values = np.asarray(file.dataobj).copy()
    middle = values[..., values.shape[2] // 2 - 1 : values.shape[2] // 2 + 1]
    middle[middle == labels["healthy"]] = labels["ground_glass"]
    target.parent.mkdir()
    nib.save(nib.Nifti1Image(values, file.affine, file.header), target)
