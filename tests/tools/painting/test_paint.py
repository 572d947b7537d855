"""paint: one CT in, the same CT with new tissue out; what cannot be painted is refused in one sentence."""

import json

import nibabel as nib
import numpy as np
import pytest

import tools.__main__ as cli
from tests.dicom import write_series
from tests.tools.fakes.chest import (
    AFFINE,
    HU,
    LABELS,
    SHAPE,
    chest,
    lungs,
    save,
    segmenter_weights,
    synthesizer_weights,
)
from tools.io.files import InputError, sha256
from tools.painting.paint import paint
from tools.quantify.extents import region_extents
from tools.segmenting.segmenter import Segmenter
from tools.workflows.synthesizer import painted_region

GLASS = LABELS["ground_glass"]
ASKED = {"tissue": "ground_glass", "volume_ml": 40, "steps": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return synthesizer_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def case(tmp_path):
    return save(chest(lungs()), tmp_path / "ct/12.nii.gz"), save(lungs(), tmp_path / "map/12.nii.gz")


def read(path):
    return np.asarray(nib.load(path).dataobj)


def test_tissue_is_painted_where_and_as_much_as_asked_and_nothing_else_changes(tmp_path, weights, case, capsys):
    ct, own = case
    words = ["paint", str(ct), "--tissue", "ground_glass", "--volume_ml", "40", "--place", "left lower"]
    words += ["--output", str(tmp_path / "7"), "--weights", str(weights), "--labels", str(own), "--steps", "2"]
    assert cli.main(words) == 0
    out = tmp_path / "7"
    assert {path.name for path in out.iterdir()} == {
        "12_painted.nii.gz", "12_target.nii.gz", "12_before_after.png", "12_provenance.json",
    }  # fmt: skip
    file, before, target = nib.load(out / "12_painted.nii.gz"), read(ct), read(out / "12_target.nii.gz")
    painted, region = np.asarray(file.dataobj), target != lungs()
    assert file.header["descrip"].item().startswith(b"SYNTHETIC difflung_synthesis")
    assert nib.load(out / "12_target.nii.gz").header["descrip"].item().startswith(b"SYNTHETIC")
    assert file.get_data_dtype() == np.int16 and np.array_equal(file.affine, AFFINE)
    wide = painted_region(lungs(), target, AFFINE, 2)
    assert np.array_equal(painted[~wide], before[~wide]) and set(target[region]) == {GLASS}
    assert abs(painted[region].mean() - HU[GLASS]) < 80 and before[region].mean() < -800
    assert region.sum() * 0.054 == pytest.approx(40, rel=0.1)
    upright = [np.ascontiguousarray(array[::-1, ::-1]) for array in (before.astype(np.float32), target)]
    found = region_extents(*upright, np.array([3.0, 3.0, 6.0]), LABELS)
    assert found["left"]["ground_glass_ml"] == found["lower"]["ground_glass_ml"] == found["whole"]["ground_glass_ml"]
    told = json.loads((out / "12_provenance.json").read_text())
    assert told["synthetic"] is True and told["source_sha256"] == sha256(ct) and told["seed"] == 0
    assert told["weights_sha256"] == sha256(weights) and "2 cases of 2 patients" in told["weights"][1]
    assert told["painted"]["ground_glass"]["volume_ml"] == pytest.approx(region.sum() * 0.054, abs=0.01)
    assert told["asked"] == {"tissue": "ground_glass", "volume_ml": 40, "place": "left lower", "density": None}
    said = capsys.readouterr().out
    assert said.startswith("painted 40.") and said.endswith(f"look at {out}/12_before_after.png\n")
    assert (out / "12_before_after.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("without_ink")
def test_the_seed_decides_everything(tmp_path, weights, case):
    ct, own = case
    for number, seed in enumerate((3, 3, 4)):
        paint(ct, output=tmp_path / str(number), weights=weights, labels=own, seed=seed, **ASKED)
    one, same, other = (read(tmp_path / f"{number}/12_painted.nii.gz") for number in range(3))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


@pytest.mark.usefixtures("without_ink")
def test_density_is_heeded_and_one_beyond_the_training_warned_of(tmp_path, weights, case, capsys):
    ct, own = case
    means = []
    for density in (-700, -400):
        out = tmp_path / str(density)
        paint(ct, output=out, weights=weights, labels=own, density=density, **ASKED)
        row = json.loads((out / "12_provenance.json").read_text())["painted"]["ground_glass"]
        means.append(row["mean_hu"])
    assert means == [pytest.approx(-700, abs=60), pytest.approx(-400, abs=60)]
    assert "--density -700 lies outside the ground glass that the weights were trained on" in capsys.readouterr().err


@pytest.mark.usefixtures("without_ink")
def test_a_series_is_painted_on_a_map_made_by_the_segmenter(tmp_path, weights, monkeypatch):
    series, made = write_series(tmp_path / "series", chest(lungs()), AFFINE), segmenter_weights(tmp_path / "w")

    def label(self, hu, affine, lung=None):
        return ((hu < -700) & (hu > -990)).astype(np.uint8)

    monkeypatch.setattr(Segmenter, "label", label)
    paint(series, output=tmp_path / "out", weights=weights, segmenter=made, **ASKED)
    told = json.loads((tmp_path / "out/series_provenance.json").read_text())
    assert told["own_map"] == f"segmenter {sha256(made)[:12]}" and len(told["source_sha256"]) == SHAPE[2]
    assert (read(tmp_path / "out/series_target.nii.gz") == GLASS).sum() * 0.054 == pytest.approx(40, rel=0.1)


@pytest.mark.usefixtures("without_ink")
def test_a_map_that_is_given_is_painted_as_far_as_it_lies_in_lung(tmp_path, weights, case, capsys):
    ct, own = case
    wanted = lungs()
    wanted[60:80, 30:50, 3:6] = LABELS["consolidation"]
    wanted[0:4, 30:40, 3:6] = LABELS["consolidation"]  # outside the body
    path = save(wanted, tmp_path / "wanted.nii.gz")
    paint(ct, output=tmp_path / "out", map=path, labels=own, weights=weights, steps=2)
    target = read(tmp_path / "out/12_target.nii.gz")
    assert np.array_equal(target, np.where(lungs() > 0, wanted, 0))
    told = json.loads((tmp_path / "out/12_provenance.json").read_text())
    assert told["map"] == {"file": "wanted.nii.gz", "sha256": sha256(path)} and told["lesions_ml"] == []
    assert "6.5 ml of" in capsys.readouterr().err
    with pytest.raises(InputError, match="12.nii.gz adds no tissue that .* does not have already"):
        paint(ct, output=tmp_path / "none", map=own, labels=own, weights=weights)


@pytest.mark.usefixtures("without_ink")
def test_dense_disease_is_warned_of_and_stays(tmp_path, weights, capsys):
    label = lungs()
    label[60:75, 30:45, 3:8] = LABELS["consolidation"]
    ct, mask = save(chest(label), tmp_path / "12.nii.gz"), save((label > 0).astype(np.uint8), tmp_path / "lung.nii.gz")
    paint(ct, output=tmp_path / "out", labels=mask, weights=weights, place="right", **ASKED)
    told = capsys.readouterr().err
    volume = float(told.split("holds ")[1].split(" ml of dense lung already")[0])
    assert volume == pytest.approx(15 * 15 * 5 * 0.054, rel=0.1)
    dense = label == LABELS["consolidation"]
    assert np.array_equal(read(tmp_path / "out/12_painted.nii.gz")[dense], read(ct)[dense])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tissue": "nodule"}, "--tissue nodule cannot be drawn; there are ground_glass, fibrosis, emphysema, consoli"),
        ({"tissue": "healthy"}, "--tissue healthy cannot be drawn"),
        ({"tissue": None}, "--tissue and --volume_ml say what to add, or --map names a target map"),
        ({"volume_ml": 0}, "--volume_ml must be above 0, not 0"),
        ({"volume_ml": 1e5}, "100000 ml of ground glass do not fit: the lung has .* ml of healthy lung free, of which"),
        ({"volume_ml": 400, "place": "left upper"}, "400 ml of ground glass do not fit: the left upper lung has"),
        ({"place": "left lobe"}, "--place 'left lobe' holds 'lobe'; a place is made of the words left, right"),
        ({"density": 400}, "--density 400 is out of range; it is the mean HU of a tissue, -1024 to 300"),
        ({"steps": 0}, "--steps must be a whole number from 1 up, not 0"),
        ({"seed": -1}, "--seed must be a whole number from 0 up, not -1"),
        ({"map": "m.nii.gz"}, "--map m.nii.gz says what lies where; leave out --tissue, --volume_ml and --place"),
        ({"weights": "w.pt"}, "--weights w.pt does not exist"),
    ],
)
def test_what_cannot_be_painted_is_refused_and_nothing_is_written(tmp_path, weights, case, changes, told):
    ct, own = case
    with pytest.raises(InputError, match=told):
        paint(ct, output=tmp_path / "out", **({"weights": weights, "labels": own} | ASKED | changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_ink")
def test_weights_that_know_no_density_or_another_scheme_or_are_the_segmenters_are_refused(tmp_path, case):
    ct, own = case
    given = {"output": tmp_path / "out", "labels": own} | ASKED
    deaf = synthesizer_weights(tmp_path / "deaf", {"density_unknown": 1.0})
    with pytest.raises(InputError, match="--density -600 is asked for, but .*deaf/model.pt was never told one in trai"):
        paint(ct, weights=deaf, density=-600, **given)
    paint(ct, weights=deaf, **given)
    given["output"] = tmp_path / "other"
    other = synthesizer_weights(tmp_path / "scheme", labels={"background": 0, "healthy": 1, "nodule": 2})
    with pytest.raises(InputError, match="is of the label scheme .*'nodule': 2}, but the bundles' is"):
        paint(ct, weights=other, **given)
    with pytest.raises(InputError, match="holds no weights of difflung_synthesis; are they the segmenter's?"):
        paint(ct, weights=segmenter_weights(tmp_path / "seg"), **given)
    deaf.with_name("card.json").unlink()
    with pytest.raises(InputError, match="deaf/model.pt has no card.json beside it"):
        paint(ct, weights=deaf, **given)


@pytest.mark.usefixtures("without_ink")
def test_weights_know_their_attributes_themselves(tmp_path, case):
    ct, own = case
    weights = synthesizer_weights(tmp_path / "w", attributes={"age": [41, 85]})
    paint(ct, output=tmp_path / "out", labels=own, weights=weights, **ASKED)
    assert (tmp_path / "out/12_painted.nii.gz").is_file()


def test_maps_of_another_grid_and_ct_without_lung_are_refused(tmp_path, weights, case, monkeypatch):
    ct, own = case
    given = {"output": tmp_path / "out", "weights": weights}
    small = save(lungs()[1:], tmp_path / "small.nii.gz")
    with pytest.raises(InputError, match=r"small.nii.gz has shape \(95, 80, 10\), but .*12.nii.gz has \(96, 80, 10\)"):
        paint(ct, labels=small, **ASKED, **given)
    with pytest.raises(InputError, match=r"small.nii.gz has shape \(95, 80, 10\)"):
        paint(ct, map=small, labels=own, **given)
    empty = save(lungs() * 0, tmp_path / "empty.nii.gz")
    with pytest.raises(
        InputError, match="12.nii.gz holds 0 ml of lung, too little to paint into; is .*empty.nii.gz th"
    ):
        paint(ct, labels=empty, **ASKED, **given)
    monkeypatch.setattr(Segmenter, "label", lambda self, hu, affine, lung=None: np.zeros(hu.shape, np.uint8))
    with pytest.raises(InputError, match=r"holds 0 ml of lung, .*; is it a chest CT in HU\? .* can be given by --labe"):
        paint(ct, segmenter=segmenter_weights(tmp_path / "seg"), **ASKED, **given)
    with pytest.raises(InputError, match="--segmenter none.pt does not exist; or say where lung is by --labels"):
        paint(ct, segmenter="none.pt", **ASKED, **given)
    assert not (tmp_path / "out").exists()
