"""What `augment` paints: maps that follow training cases, lesions with context, the hardest of several paintings."""

import json

import nibabel as nib
import numpy as np
import pytest

import tools.painting.augment as module
from tests.tools.fakes.augmented import manifest, write_case
from tools.data.datalist import read_fold
from tools.data.provenance import cases_read
from tools.io.files import InputError, read_json, write_json
from tools.painting.augment import augment
from tools.painting.replay import replay

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test


def test_joint_maps_follow_training_cases_the_hard_ones_more_often(datalist, stand_in, tmp_path):
    from tools.maps.followed import Followed

    augment(datalist=datalist, fold=0, output=tmp_path / "out", method="copy_paste", mixture="joint")
    rows = manifest(tmp_path / "out")
    assert len(rows) == 4 and all(set(row["volume_ml"]) == {"ground_glass", "consolidation"} for row in rows)
    training, _ = read_fold(datalist, 0)
    one = [training[0]] * 3
    assert len(set(Followed({"ground_glass": 0.9, "consolidation": 0.1}).weights(one))) == 1
    write_case(datalist.parent, "easy", 9, value=2)  # ground glass alone
    easy = module.Case(datalist.parent / "images/easy.nii.gz", datalist.parent / "labels/easy.nii.gz", "p", 1)
    weights = Followed({"healthy": 0.1, "ground_glass": 0.9, "consolidation": 0.1}).weights([training[0], easy])
    assert weights[0] == pytest.approx(0.5) and weights[1] == pytest.approx(0.1)
    (tmp_path / "dice.json").write_text(json.dumps({"dice": {"ground_glass": 2}}))
    given = {"datalist": datalist, "fold": 0, "output": tmp_path / "no", "method": "copy_paste"}
    with pytest.raises(InputError, match="has no dice with a number from 0 to 1 for each tissue"):
        augment(**given, mixture="joint", dice=tmp_path / "dice.json")
    with pytest.raises(InputError, match="so they need --mixture joint"):
        augment(**given, dice=tmp_path / "dice.json")
    with pytest.raises(InputError, match="has no look_alikes with a number from 0 to 1 for each tissue that one is"):
        augment(**given, mixture="joint", look_alikes=tmp_path / "dice.json")
    with pytest.raises(InputError, match="mixture must be one of balanced, joint, not odd"):
        augment(**given, mixture="odd")


def test_what_looks_like_a_tissue_is_followed_more_often_where_the_tissue_is_absent(datalist, stand_in, tmp_path):
    from tools.maps.followed import Followed

    both, _ = read_fold(datalist, 0)
    write_case(datalist.parent, "negative", 9, value=2)  # ground glass alone
    negative = module.Case(
        datalist.parent / "images/negative.nii.gz", datalist.parent / "labels/negative.nii.gz", "p", 1
    )
    taken = {"ground_glass": {"consolidation": 0.3, "fibrosis": 0.1}, "consolidation": {"ground_glass": 0.2}}
    weights = Followed(look_alikes=taken).weights([both[0], negative])
    assert weights == pytest.approx([(0.1 + 0.05) / 2, 0.4])  # 0.05 at least
    dice = {"ground_glass": 0.5, "consolidation": 0.9}
    assert Followed(dice, taken).weights([both[0], negative]) == pytest.approx([0.3 * 0.075, 0.5 * 0.4])
    assert Followed(look_alikes={"emphysema": {"fibrosis": 0.2}}).weights([negative]) == pytest.approx([0.2])  # unknown
    write_json(tmp_path / "plateau.json", {"look_alikes": taken})
    given = {"datalist": datalist, "fold": 0, "output": tmp_path / "out", "method": "copy_paste", "max_cases": 1}
    augment(**given, mixture="joint", look_alikes=tmp_path / "plateau.json")
    assert read_json(tmp_path / "out/maps.json")["look_alikes"] == taken


def test_of_several_candidates_the_accepted_one_that_is_found_least_is_kept(datalist, stand_in, tmp_path, monkeypatch):
    import tools.gate.run as gate_run
    from tools.workflows.segmenter import Answers

    share = {"judged0": 0.9, "judged1": 0.2, "judged2": 0.5}  # of the painted tissue that is found

    def segment(images, weights, card, work, client, threads):
        files = {case: work / f"{case}.nii.gz" for case in images}
        work.mkdir(parents=True, exist_ok=True)
        for case, path in images.items():
            image = nib.load(path)
            place = work.parents[1] / "maps" / f"{case}.nii.gz"
            file = place if place.is_file() else datalist.parent / f"labels/{case}.nii.gz"
            answer = np.asarray(nib.load(file).dataobj).copy()
            if work.name in share:
                chance = np.random.default_rng(0).random(answer.shape)
                answer[chance > share[work.name]] = 1
            nib.save(nib.Nifti1Image(answer, image.affine), files[case])
        return Answers(files)

    monkeypatch.setattr(gate_run, "segment", segment)
    weights = tmp_path / "judge/model.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"judge")
    training, _ = read_fold(datalist, 0)
    write_json(
        weights.with_name("card.json"), {"cases": cases_read(training), "spacing_mm": [2, 2, -1], "overrides": {}}
    )
    given = {"datalist": datalist, "fold": 0, "max_cases": 2, "segmenter": weights}
    augment(**given, output=tmp_path / "one")
    augment(**given, output=tmp_path / "out", candidates=3)
    rows = manifest(tmp_path / "out")
    assert all([row["kept"] for row in line["candidates"]] == [False, True, False] for line in rows)
    assert all(0.1 < line["candidates"][1]["recall"] < 0.3 < line["candidates"][2]["recall"] for line in rows)
    assert all(check["recall"] < 0.3 for line in rows for check in line["checks"].values())
    assert [line["painting"]["seed"] for line in rows] == [module.CANDIDATE_SEEDS] * 2
    for line, other in zip(rows, manifest(tmp_path / "one")):
        assert line["map_sha256"] == other["map_sha256"] and line["voxels_sha256"] != other["voxels_sha256"]
        replay(tmp_path / "out/manifest.jsonl", line["case"])
    quality = read_json(tmp_path / "out/quality.json")["unfiltered"]
    assert max(card["painted_cases"] for card in quality.values()) == 2  # not of the candidates that were left
    with pytest.raises(InputError, match="candidates are compared by a segmenter .*; give --segmenter, and paint"):
        augment(datalist=datalist, fold=0, output=tmp_path / "no", candidates=2)
    with pytest.raises(InputError, match="candidates must be a whole number of at least 1, not 0"):
        augment(datalist=datalist, fold=0, output=tmp_path / "no", candidates=0)


def test_lesions_with_their_context_are_pasted_and_compared_tissue_by_tissue(datalist, stand_in, tmp_path):
    for item in json.loads(datalist.read_text())["training"]:  # a halo of ground glass round each consolidation
        path = datalist.parent / item["label"]
        image = nib.load(path)
        label = np.asarray(image.dataobj).copy()
        label[38:48, 18:30, 2:4] = np.where(label[38:48, 18:30, 2:4] == 1, 2, label[38:48, 18:30, 2:4])
        nib.save(nib.Nifti1Image(label, image.affine), path)
    augment(datalist=datalist, fold=0, output=tmp_path / "out", method="copy_paste", context=True, mixture="joint")
    card = read_json(tmp_path / "out/maps.json")
    assert card["context"] and {row["tissue"] for row in card["table"]} == {"ground_glass", "consolidation"}
    assert all(set(row["volume_ml"]) == {"ground_glass", "consolidation"} for row in manifest(tmp_path / "out"))
