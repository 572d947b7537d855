"""What ``federated`` refuses and what it writes, with a stand-in for NVFlare, which tests/integrations runs."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import tools.federated.federated as module
from tools import __main__ as cli
from tools.federated.federated import federated
from tools.io.files import InputError, RunError, sha256
from tools.tissues import tissue_labels

PEER = """
import json, pathlib, sys
job = json.loads(pathlib.Path(sys.argv[1]).read_text())
pathlib.Path(job["weights"]).write_text("weights")
for name, file in job["site_files"].items():
    rows = [{"round": r, "site": name, "metrics": {"val_mean_dice": 0.5} if r else None} for r in range(job["rounds"])]
    folder = pathlib.Path(json.loads(pathlib.Path(file).read_text())["overrides"]["output_dir"])
    (folder / "rounds.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
"""


class Site:
    """A data set of three patients in two folds; its maps hold their own names."""

    def __init__(self, folder: Path) -> None:
        self.path, self.name = folder / "datalist.json", folder.name
        self.content = {"labels": tissue_labels(), "training": []}
        for number in range(3):
            files = {kind: f"{kind}{number}.nii.gz" for kind in ("image", "label")}
            folder.mkdir(exist_ok=True)
            (folder / files["label"]).write_text(f"{folder.name} {files['label']}")
            hu = np.full((4, 4, 1), -1000, np.int16)
            hu[3] = 40
            hu[0, 0] += 1 + 8 * ord(folder.name[-1]) + number
            nib.save(nib.Nifti1Image(hu, np.eye(4)), folder / files["image"])
            self.content["training"].append(files | {"patient": f"{folder.name}{number}", "fold": number % 2})
        self.write()

    def write(self) -> None:
        self.path.write_text(json.dumps(self.content))


@pytest.fixture
def sites(tmp_path):
    return Site(tmp_path / "A"), Site(tmp_path / "B")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a program in place of ours that trains nothing, in an environment that is taken for NVFlare's."""
    peer = tmp_path / "peer.py"
    peer.write_text(PEER)
    monkeypatch.setattr(module, "WORKER", peer)
    monkeypatch.setattr(module, "check_python", lambda *given: None)
    return peer


def run(sites, **flags):
    given = {"datalists": ",".join(str(site.path) for site in sites), "bundle": "lung_tissue_seg"}
    federated(**given | {"output": sites[0].path.parents[1] / "out"} | flags)


def refusal(sites, **flags) -> str:
    output = sites[0].path.parents[1] / "out"
    with pytest.raises(InputError) as caught:
        run(sites, **flags)
    assert not output.exists()
    return str(caught.value)


def test_one_site_is_no_federation(sites):
    assert "a federation needs two sites at least, separated by a comma" in refusal(sites[:1])


def test_a_missing_datalist_is_named(sites, tmp_path):
    sites[1].path.unlink()
    assert refusal(sites) == f"{sites[1].path} does not exist"


def test_a_patient_of_two_sites_is_named(sites):
    sites[1].content["training"][2]["patient"] = "A1"
    sites[1].write()
    assert refusal(sites).startswith("site-1 and site-2 share patient A1")


def test_a_ct_of_two_sites_is_found_under_another_name(sites):
    image = nib.load(sites[0].path.parent / "image0.nii.gz")
    nib.save(nib.Nifti1Image(image.get_fdata(), image.affine), sites[1].path.parent / "image2.nii.gz")
    assert refusal(sites) == "case image0 of site-1 and case image2 of site-2 are the same CT"


def test_other_labels_are_refused(sites):
    sites[1].content["labels"] = {"background": 0, "healthy": 1}
    sites[1].write()
    assert f"but {sites[1].path} {{'background': 0, 'healthy': 1}}" in refusal(sites)


def test_a_fold_that_a_site_lacks_is_refused(sites):
    assert refusal(sites, fold=2) == f"{sites[0].path} has no fold 2; it has 0, 1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"bundle": "lung"}, "bundle is 'lung', but can be lung_tissue_seg or difflung_synthesis"),
        ({"rounds": 0}, "rounds must be a whole number of at least 1, not 0"),
        ({"local_epochs": -1}, "local_epochs must be a whole number of at least 1, not -1"),
        ({"overrides": {"max_epochs": 3}}, "overrides hold max_epochs, which federated sets itself"),
        ({"overrides": {"epoch_lenght": 3}}, "lung_tissue_seg/train.json+federated.yaml has no id 'epoch_lenght'"),
        ({"python": "/nowhere/python"}, "python /nowhere/python cannot be started"),
    ],
)
def test_a_wrong_call_is_refused(sites, flags, message):
    assert message in refusal(sites, **flags)


def test_an_environment_without_nvflare_is_refused(sites):
    message = refusal(sites, python=Path(sys.executable))
    assert message.startswith(f"{sys.executable} cannot import nvflare") and "No module named 'nvflare'" in message


def test_an_output_that_holds_something_is_left_alone(sites, stand_in, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(InputError, match="is not empty"):
        run(sites)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_each_site_gets_its_own_data_and_all_the_same_settings(sites, stand_in, tmp_path, capsys):
    words = ["--datalists", f"{sites[0].path},{sites[1].path}", "--bundle", "lung_tissue_seg", "--rounds", "3"]
    words += ["--local_epochs", "2", "--output", str(tmp_path / "out"), "--overrides", "{epoch_length: 7}"]
    assert cli.main(["federated", *words]) == 0
    out = tmp_path / "out"
    for number, site in enumerate(sites, 1):
        own = json.loads((out / f"sites/site-{number}/site.json").read_text())["overrides"]
        assert own["datalist"] == str(site.path) and own["fold"] == 0
    settings = json.loads((out / "federated_settings.json").read_text())
    assert settings["overrides"] == {"epoch_length": 7, "seed": 0, "max_epochs": 6} and settings["local_epochs"] == 2
    assert not any(str(site.path.parent) in (out / "federated_settings.json").read_text() for site in sites)
    table = (out / "rounds.csv").read_text().splitlines()
    assert table[0] == "round,site,val_mean_dice"
    assert table[1:4] == ["0,site-1,", "0,site-2,", "1,site-1,0.5"] and len(table) == 7
    card = json.loads((out / "card.json").read_text())
    assert card["sites"] == {"site-1": ["image1"], "site-2": ["image1"]}  # fold 0 is held out
    assert [row["patient"] for row in card["cases"]] == ["A1", "B1"] and card["sha256"] == sha256(out / "model.pt")
    assert f"wrote {out / 'model.pt'}" in capsys.readouterr().out


def test_the_synthesizer_has_a_round_more_in_which_it_measures(sites, stand_in, tmp_path):
    run(sites, bundle="difflung_synthesis")
    assert json.loads((tmp_path / "out/job.json").read_text())["rounds"] == 3


def test_a_federation_that_fails_says_where_its_log_is(sites, stand_in, tmp_path):
    lines = ["2026-11-27 05:57:54,191 - INFO - MemoryError: too large", "RuntimeError: Simulation failed"]
    stand_in.write_text(f"print({chr(10).join(lines)!r}); raise SystemExit(1)")
    with pytest.raises(RunError, match=r"the federation failed: MemoryError: too large; its log is .*federated\.log"):
        run(sites)
