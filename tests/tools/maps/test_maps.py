"""The mask bank: only training patients are read, the card says so, and maps drawn by hand are checked."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas
import pytest

from tools.comparison.mixing import prevalence_weights
from tools.data.datalist import read_fold
from tools.io.files import InputError, sha256
from tools.maps.bank import draw_bank, maps_card, read_maps
from tools.maps.check import check_maps
from tools.maps.followed import Followed
from tools.maps.maps import maps
from tools.maps.statistics import compare_lesions, floor
from tools.tissues import tissue_labels

AFFINE = np.array([[-3.0, 0, 0, 60], [0, 3.0, 0, -50], [0, 0, 6.0, 5], [0, 0, 0, 1]])
SIZE = (44, 40, 6)


def write_case(folder, number):
    x, y, _ = np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij")
    lung = (((x - 12) / 9) ** 2 + ((y - 20) / 16) ** 2 < 1) | (((x - 32) / 9) ** 2 + ((y - 20) / 16) ** 2 < 1)
    label = lung.astype(np.uint8)
    label[6:16, 8 + number : 20 + number, 1:5][lung[6:16, 8 + number : 20 + number, 1:5]] = 2
    if number % 2:
        label[28:34, 18 : 24 + number % 3, 2:4] = 5
    hu = np.where(lung, np.array([0, -850, -600, 0, 0, 20])[label], 40)
    hu = (hu + np.random.default_rng(number).normal(0, 20, SIZE)).round().astype(np.int16)
    for kind, array in (("images", hu), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), folder / kind / f"case{number}.nii.gz")


@pytest.fixture
def datalist(tmp_path):
    for number in range(6):
        write_case(tmp_path / "cohort", number)
    items = [
        {"image": f"images/case{n}.nii.gz", "label": f"labels/case{n}.nii.gz", "fold": n % 3, "patient": f"p{n}"}
        for n in range(6)
    ]
    path = tmp_path / "cohort/datalist.json"
    path.write_text(json.dumps({"labels": tissue_labels(), "training": items}))
    return path


@pytest.fixture
def training(datalist):
    return read_fold(datalist, 0)[0]


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize(("procedural", "kind"), [(0.0, "transplanted"), (1.0, "procedural")])
def test_map_adds_lesions_to_healthy_lung_and_its_row_says_which(training, tmp_path, procedural, kind):
    plan = draw_bank(training, tmp_path / "maps", 1.0, 0, 4, procedural).plan
    assert plan
    for row in plan:
        target, label = voxels(row.map), voxels(row.source.label)
        new = target != label
        assert (label[new] == 1).all() and set(np.unique(target[new])) == {5} and row.tissues == ["consolidation"]
        assert row.voxels == new.sum()
        assert row.volume_ml["consolidation"] == pytest.approx(new.sum() * 0.054, abs=0.01)
        assert (row.map_kind, row.map_sha256) == (kind, sha256(row.map))
        assert bool(row.donors) == (kind == "transplanted")
        assert np.array_equal(nib.load(row.map).affine, AFFINE)
        assert b"SYNTHETIC" in nib.load(row.map).header["descrip"].tobytes()


def test_joint_maps_hold_negatives_so_that_the_prevalence_of_a_rare_tissue_can_be_held(training, tmp_path):
    """Half of the training cases have consolidation; the hosts are their lungs without any disease."""
    hosts = []
    for case in training:
        image, path = nib.load(case.label), tmp_path / f"{case.name}_host.nii.gz"
        nib.save(nib.Nifti1Image((np.asarray(image.dataobj) > 0).astype(np.uint8), image.affine), path)
        hosts.append(replace(case, label=path))
    joint = draw_bank(training, tmp_path / "joint/maps", 1.0, 0, 12, hosts=hosts, joint=Followed()).plan
    balanced = draw_bank(training, tmp_path / "balanced/maps", 1.0, 0, 12, hosts=hosts).plan
    rare, always = (np.array([[5 in voxels(row.map)] for row in plan]) for plan in (joint, balanced))
    assert 2 < rare.sum() < len(rare) - 2 and always.all()
    wanted = np.array([0.25])
    assert prevalence_weights(rare, wanted) @ rare == pytest.approx(wanted, abs=0.02)
    assert prevalence_weights(always, wanted) @ always == pytest.approx([1.0])


def test_a_joint_map_says_which_case_it_follows_and_says_it_again(training, tmp_path):
    drawn = draw_bank(training, tmp_path / "maps", 1.0, 0, 3, joint=Followed()).plan
    follows = {row.name: row.follows for row in drawn}
    assert set(follows.values()) <= {case.name for case in training}
    assert {row.name: row.follows for row in read_maps(tmp_path / "maps", training)} == follows


def test_bank_reads_training_patients_only_and_its_card_names_every_file_read(datalist, training, tmp_path):
    for number in (0, 3):  # the held-out cases; unreadable files would be noticed
        (datalist.parent / f"labels/case{number}.nii.gz").write_bytes(b"")
    bank = draw_bank(training, tmp_path / "maps", 1.0, 0, 4, 0.5)
    plan, card = bank.plan, bank.card
    assert card == json.loads((tmp_path / "maps.json").read_text())
    assert card["patients"] == ["p1", "p2", "p4", "p5"]
    assert {row["case"]: row["label_sha256"] for row in card["cases"]} == {
        f"case{n}": sha256(datalist.parent / f"labels/case{n}.nii.gz") for n in (1, 2, 4, 5)
    }
    assert [row["map_sha256"] for row in card["maps"]] == [row.map_sha256 for row in plan]
    donors = [donor for row in card["maps"] for donor in row["donors"]]
    assert donors and all(donor["patient"] == "p" + donor["case"][-1] for donor in donors)
    assert sum(len(row["procedural"]) for row in card["maps"]) > 0


def test_same_seed_same_bank_and_another_seed_another(training, tmp_path):
    runs = [draw_bank(training, tmp_path / f"{n}/maps", 1.0, seed, 3, 0.5).plan for n, seed in enumerate((0, 0, 1))]
    first, second, third = ([voxels(row.map).tobytes() for row in plan] for plan in runs)
    assert first == second != third


def test_pasted_hu_are_the_donors_and_only_in_the_lesions(training, tmp_path):
    plan = draw_bank(training, tmp_path / "maps", 1.0, 0, 3, pasted=tmp_path / "pasted").plan
    for row in plan:
        pasted, source = voxels(tmp_path / f"pasted/{row.name}.nii.gz"), voxels(row.source.image)
        new = voxels(row.map) != voxels(row.source.label)
        assert np.array_equal(pasted[~new], source[~new])
        assert np.median(pasted[new]) == pytest.approx(20, abs=15)


@pytest.mark.parametrize(("given", "message"), [
    ({"procedural": 1.5}, "procedural must be from 0 to 1, not 1.5"),
    ({"procedural": 0.5, "pasted": "x"}, "lesions with procedural 0.5 have no donor's HU to paste"),
])  # fmt: skip
def test_bank_refuses_wrong_settings(training, tmp_path, given, message):
    with pytest.raises(InputError, match=message):
        draw_bank(training, tmp_path / "maps", 1.0, 0, 3, **given)
    assert not (tmp_path / "maps").exists()


def test_drawn_bank_is_read_back_as_it_was_drawn(training, tmp_path):
    plan = sorted(draw_bank(training, tmp_path / "bank/maps", 1.0, 0, 3, 0.5).plan, key=lambda row: row.name)
    rows = read_maps(tmp_path / "bank", training)
    assert rows == [replace(row, volume_ml=rows[n].volume_ml, grown=[]) for n, row in enumerate(plan)]
    for row, drawn in zip(rows, plan):
        assert row.volume_ml == pytest.approx(drawn.volume_ml, abs=0.02)
    maps_card(training, rows, {"supplied": "bank"})


def test_bank_drawn_from_a_test_patient_is_refused(datalist, training, tmp_path):
    draw_bank(read_fold(datalist, 1)[0], tmp_path / "maps", 1.0, 0, 3)
    for path in (tmp_path / "maps").glob("case[03]*"):
        path.unlink()
    with pytest.raises(InputError, match="lesions of case0, patient p0, which is no training case here"):
        read_maps(tmp_path / "maps", training)


def edited(datalist, folder, name, change, affine=AFFINE):
    array = voxels(datalist.parent / "labels/case1.nii.gz").copy()
    array = change(array)
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")


def add(array, value=3, box=(slice(28, 34), slice(8, 14), slice(1, 4))):
    array[box][array[box] == 1] = value
    return array


def erase(array):
    array[array == 5] = 1
    return add(array)


def test_map_drawn_by_hand_becomes_a_row_of_its_own(datalist, training, tmp_path):
    edited(datalist, tmp_path / "hand", "case1", add)
    edited(datalist, tmp_path / "hand", "case1_second", lambda array: add(array, 4))
    first, second = read_maps(tmp_path / "hand", training)
    assert (first.name, first.source.name, first.map_kind, first.tissues) == (
        "case1_supplied", "case1", "supplied", ["fibrosis"],
    )  # fmt: skip
    assert (second.name, second.tissues, second.donors) == ("case1_second", ["emphysema"], [])
    assert first.volume_ml["fibrosis"] == pytest.approx(108 * 0.054, rel=0.3)


BAD = {
    "case1_outside": (lambda array: add(array, 3) + 2 * (np.indices(array.shape)[0] == 0).astype(np.uint8), AFFINE,
                      "changes 240 voxels outside the lung"),
    "case1_hole": (lambda array: add(array, 0), AFFINE, "voxels of the lung background"),
    "case1_erased": (erase, AFFINE, "voxels of lesions healthy"),
    "case1_same": (lambda array: array, AFFINE, "adds no lesion to"),
    "case1_speck": (lambda array: add(array, 3, (slice(30, 32), slice(10, 12), slice(1, 3))), AFFINE,
                    "adds only 8 voxels of fibrosis; 24 are the least"),
    "case1_foreign": (lambda array: add(array, 9), AFFINE, "holds label 9"),
    "case1_moved": (add, AFFINE + np.eye(4)[:, [3, 0, 1, 2]] * 0 + np.diag([0.5, 0, 0, 0]), "has another affine"),
    "case1_small": (lambda array: array[:-1], AFFINE, "has shape"),
    "case3_x": (add, AFFINE, "is named after none of the 4 CTs"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_unusable_map_is_named_with_its_fault(datalist, training, tmp_path, name):
    change, affine, message = BAD[name]
    edited(datalist, tmp_path / "hand", name, change, affine)
    with pytest.raises(InputError, match=message) as caught:
        read_maps(tmp_path / "hand", training)
    assert f"{name}.nii.gz" in str(caught.value)


def test_check_prints_every_finding_before_it_fails(datalist, tmp_path, capsys):
    for name in ("case1_erased", "case1_same"):
        edited(datalist, tmp_path / "hand", name, BAD[name][0])
    edited(datalist, tmp_path / "hand", "case1_good", lambda array: add(array, 5))
    with pytest.raises(InputError, match=r"2 of 3 maps cannot be painted: case1_erased.nii.gz, case1_same.nii.gz"):
        check_maps(tmp_path / "hand", datalist)
    printed = capsys.readouterr().out
    assert "lesions healthy" in printed and "adds no lesion" in printed and "case1_good.nii.gz adds" in printed


def test_lesion_unlike_the_datas_is_a_warning_and_no_error(datalist, tmp_path, capsys):
    whole = (slice(24, 44), slice(0, 40), slice(0, 6))
    edited(datalist, tmp_path / "hand", "case1_huge", lambda array: add(array, 5, whole))
    edited(datalist, tmp_path / "hand", "case1_new", add)
    check_maps(tmp_path / "hand", datalist)
    printed = capsys.readouterr().out
    assert "consolidation: size of 1 of 1 lesions lies outside the training lesions'" in printed
    assert "fibrosis: no training patient has any" in printed and "all 2 maps can be painted" in printed


def test_command_writes_maps_card_and_statistics(datalist, tmp_path, capsys):
    maps(datalist, 0, tmp_path / "out", max_cases=3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "maps", "maps.json", "statistics.csv", "statistics.md", "statistics.png",
    }  # fmt: skip
    table = pandas.read_csv(tmp_path / "out/statistics.csv")
    assert set(table["tissue"]) == {"consolidation"} and len(table) == 6
    assert (tmp_path / "out/statistics.png").read_bytes().startswith(b"\x89PNG")
    assert "| consolidation (" in capsys.readouterr().out


@pytest.mark.parametrize("joint", [None, Followed()], ids=["balanced", "joint"])
def test_a_tissue_too_small_to_move_is_told_where_others_can_be(datalist, tmp_path, capsys, joint):
    path = datalist.parent / "labels/case1.nii.gz"
    label = voxels(path).astype(np.uint8)
    label[31, 10:13, 2] = tissue_labels()["emphysema"]
    nib.save(nib.Nifti1Image(label, AFFINE), path)
    assert draw_bank(read_fold(datalist, 0)[0], tmp_path / "maps", 1.0, 0, 3, joint=joint).plan
    told = (
        "no new map holds emphysema: all lesions of emphysema have less than the 24 voxels that one needs to be moved"
    )
    assert told in capsys.readouterr().out


def test_distance_and_floor_have_known_answers():
    names = ("volume_ml", "depth_mm", "height", "elongation", "fullness")

    def rows(shift):
        return pandas.DataFrame(
            [{"case": f"c{n}", "patient": f"p{n}", "tissue": "fibrosis"} | {name: 1.0 + shift for name in names}
             for n in range(4)]
        )  # fmt: skip

    table = compare_lesions(rows(0), rows(2)).set_index("measure")
    assert table.loc["depth_mm", "distance"] == 2 and table.loc["lesions_per_ct", "distance"] == 0
    assert (table["floor"] == 0).all()
    spread = rows(0).assign(depth_mm=[0.0, 0.0, 0.0, 4.0])
    assert floor(spread, "depth_mm") == 2  # one half has 0 and 4, the other 0 and 0
    assert np.isnan(floor(rows(0)[:1], "depth_mm"))
