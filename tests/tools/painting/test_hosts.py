"""Painting into CTs that nobody labelled: whose they are, how they are cut, and tissue drawn into them."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from tests.tools.fakes.augmented import manifest
from tests.tools.phantom.test_draw_into_ct import LABELS, chest, write_ct
from tools.__main__ import main
from tools.comparison.leaks import augmented_stages, check_augmented
from tools.data.datalist import read_datalist
from tools.io.files import InputError, read_json
from tools.painting.augment import augment
from tools.painting.drawn import draw_case
from tools.painting.hosts import cut_hosts, read_hosts

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test


@pytest.fixture
def hosts(tmp_path):
    for number in range(2):
        write_ct(tmp_path / f"hosts/normal{number}.nii.gz", chest(number)[0])
    return tmp_path / "hosts"


@pytest.mark.parametrize("method", ["cbmat", "copy_paste", "drawn"])
def test_new_tissue_lies_in_the_hosts_and_the_rest_is_theirs(datalist, stand_in, hosts, tmp_path, method):  # noqa: F811
    out = tmp_path / "out"
    augment(datalist=datalist, fold=0, output=out, hosts=hosts, method=method, max_cases=3)
    rows = manifest(out)
    assert len(rows) == 3 and {row["patient"] for row in rows} == {"normal0", "normal1"}
    for row in rows:
        painted, target = (nib.load(out / f"{kind}/{row['case']}.nii.gz") for kind in ("images", "labels"))
        source, label = (nib.load(out / "hosts" / kind / f"{row['source']}.nii.gz") for kind in ("images", "labels"))
        new = np.asarray(target.dataobj) != np.asarray(label.dataobj)
        changed = np.asarray(painted.dataobj) != np.asarray(source.dataobj)
        assert new.any() and set(np.unique(np.asarray(label.dataobj))) == {0, 1}
        assert changed[new].mean() > 0.8 and not changed[np.asarray(label.dataobj) == 0].any()
        assert painted.shape[2] == 6 and np.allclose(painted.affine, source.affine)
    items = [item for item in read_json(out / "datalist.json")["training"] if item.get("synthetic")]
    assert {item["patient"] for item in items} <= {"normal0", "normal1"}
    assert {row["patient"] for row in augmented_stages(out, method)["hosts without labels"]} == {"normal0", "normal1"}
    check_augmented(out, method, read_datalist(datalist), 0)


def test_histories_are_drawn_with_the_tissues_they_go_with(datalist, stand_in, hosts, tmp_path):  # noqa: F811
    """A host has no history; it is told that of the training case whose tissues and volumes it gets."""
    content = read_json(datalist)
    words = {item["patient"]: word for item, word in zip(content["training"], ["smoker", "none"] * 3)}
    for item in content["training"]:
        item["history"] = words[item["patient"]]
    datalist.write_text(json.dumps(content))
    given = {"datalist": datalist, "fold": 0, "hosts": hosts, "max_cases": 4}
    augment(**given, output=tmp_path / "joint", mixture="joint")
    follows = {row["case"]: row["follows"] for row in read_json(tmp_path / "joint/maps.json")["maps"]}
    told = {row["case"]: row["conditions"].get("history") for row in manifest(tmp_path / "joint")}
    assert {words[follows[case].replace("case", "p")] for case in told} == {"smoker", "none"}
    assert all(word in (None, words[follows[case].replace("case", "p")]) for case, word in told.items())
    assert any(told.values())
    augment(**given, output=tmp_path / "balanced")
    assert not any("history" in row["conditions"] for row in manifest(tmp_path / "balanced"))


def test_every_method_gets_the_same_maps_in_the_same_hosts(datalist, stand_in, hosts, tmp_path):  # noqa: F811
    for method in ("drawn", "copy_paste"):
        augment(datalist=datalist, fold=0, output=tmp_path / method, hosts=hosts, method=method, max_cases=2)
    names = sorted(path.name for path in (tmp_path / "drawn/labels").iterdir())
    assert len(names) == 2
    for name in names:
        one, other = (np.asarray(nib.load(tmp_path / m / "labels" / name).dataobj) for m in ("drawn", "copy_paste"))
        assert np.array_equal(one, other)
    line = manifest(tmp_path / "drawn")[0]
    assert line["method"] == "drawn" and line["accepted"] and line["checkpoint_sha256"] is None
    assert main(["replay", "--manifest", str(tmp_path / "drawn/manifest.jsonl"), "--case", line["case"]]) == 1


def test_hosts_who_are_test_patients_or_labelled_cases_are_refused(datalist, stand_in, hosts, tmp_path):  # noqa: F811
    given = {"datalist": datalist, "fold": 0, "output": tmp_path / "out", "hosts": hosts, "method": "drawn"}
    held_out, known = hosts / "other.nii.gz", hosts / "more.nii.gz"
    shutil.copy(datalist.parent / "images/case0.nii.gz", held_out)
    with pytest.raises(
        InputError, match="stage hosts was fitted on other of patient other, which is the same CT as test"
    ):
        augment(**given)
    held_out.unlink()
    shutil.copy(datalist.parent / "images/case1.nii.gz", known)
    with pytest.raises(InputError, match="host more is the CT of the labelled case case1; leave it out"):
        augment(**given)
    known.unlink()
    (hosts / "patients.csv").write_text("case,patient\nnormal0,p0\nnormal1,p9\n")
    with pytest.raises(InputError, match="stage hosts was fitted on test patients p0"):
        augment(**given)
    with pytest.raises(InputError, match="leave out --maps or --hosts"):
        augment(**given | {"maps": tmp_path})
    assert not (tmp_path / "out").exists()


def test_a_card_of_hosts_that_names_a_test_patient_stops_the_comparison(datalist, stand_in, hosts, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    augment(datalist=datalist, fold=0, output=out, hosts=hosts, method="drawn", max_cases=1)
    card = read_json(out / "hosts.json")
    card["cases"][0]["patient"] = "p3"
    (out / "hosts.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="stage hosts without labels was fitted on test patients p3"):
        check_augmented(out, "drawn", read_datalist(datalist), 0)


def test_hosts_get_the_slices_and_the_pixels_of_the_training_cases(datalist, hosts, tmp_path):  # noqa: F811
    training = [case for case in read_datalist(datalist)["training"] if case.fold != 0]
    write_ct(hosts / "fine.nii.gz", np.repeat(np.repeat(chest(5)[0], 2, 0), 2, 1), np.diag([-1.0, -1.0, 8.0, 1.0]))
    mask = np.zeros((150, 110, 6), np.uint8)
    mask[20:60, 30:80], mask[90:130, 30:80] = 1, 1
    write_ct(hosts / "lungs/normal0.nii.gz", mask)
    cases = cut_hosts(read_hosts(hosts), training, tmp_path / "cut", 6, 0)
    assert [case.name for case in cases] == [f"{n}_part{p}" for n in ("fine", "normal0", "normal1") for p in (0, 1)]
    fine = nib.load(cases[0].image)
    assert np.allclose(fine.header.get_zooms(), (2, 2, 8)) and fine.shape[2] == 6
    lung = np.asarray(nib.load(cases[0].label).dataobj) > 0
    sides = [np.flatnonzero(lung.any(axis)) for axis in ((1, 2), (0, 2))]
    room = min(min(side[0], size - 1 - side[-1]) for side, size in zip(sides, lung.shape))
    assert abs(2 * room - 12) <= 4  # the training lungs end 6 voxels of 2 mm from the edge
    known = np.argwhere(np.repeat(np.repeat(chest(5)[1], 2, 0), 2, 1)).mean(0)[:2] * -1.0
    found = nib.affines.apply_affine(fine.affine, np.argwhere(lung).mean(0))[:2]
    assert np.abs(found - known).max() < 3  # mm
    assert np.count_nonzero(np.asarray(nib.load(cases[2].label).dataobj)) == np.count_nonzero(mask)


@pytest.mark.parametrize("affine", [np.diag([-2.0, -2.0, 8.0, 1.0]), np.diag([2.0, 2.0, 8.0, 1.0])])
def test_tissue_is_drawn_where_the_map_wants_it_whatever_the_axes(affine):
    hu, lung = chest(3)
    label = lung.astype(np.uint8)
    target = label.copy()
    target[25:45, 40:60, 2:4] = np.where(lung[25:45, 40:60, 2:4], LABELS["consolidation"], 0)
    drawn = draw_case(np.random.default_rng(0), np.rint(hu), label, target, affine)
    new = target != label
    assert np.median(drawn[new]) > np.median(hu[new]) + 300
    far = np.ones(hu.shape, bool)
    far[22:48, 37:63, 2:4] = False
    assert np.array_equal(drawn[far], np.rint(hu)[far]) and np.array_equal(drawn, np.round(drawn))
