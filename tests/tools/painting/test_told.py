"""After painting, the synthesizer is told only what still holds of the patient."""

import dataclasses

import nibabel as nib
import numpy as np
import pandas
import pytest

from tools.data.datalist import Case
from tools.maps.bank import PlannedCase
from tools.painting.told import Densities, Joint
from tools.tissues import tissue_labels
from tools.workflows.synthesizer import write_conditions

LABELS, TISSUES = tissue_labels(), ("ground_glass", "consolidation", "fibrosis")


def label_of(path, **rows):
    """Write a lung of ten rows, of which some hold a tissue."""
    label = np.ones((10, 4, 1), np.uint8)
    start = 0
    for name, count in rows.items():
        label[start : start + count] = LABELS[name]
        start += count
    nib.save(nib.Nifti1Image(label, np.eye(4)), path)
    return path


@pytest.fixture
def training(tmp_path):
    rows = [
        ("smoker", 0.3, {"emphysema": 3}),
        ("post-infection", 0.4, {"ground_glass": 2, "consolidation": 2}),
        ("post-infection", 0.2, {"ground_glass": 2}),
    ]
    cases = []
    for number, (history, severity, tissues) in enumerate(rows):
        label = label_of(tmp_path / f"c{number}.nii.gz", **tissues)
        about = {"history": history, "severity": severity, "age": 60 + number}
        cases.append(Case(label, label, f"p{number}", 0, about=about))
    return cases


def planned(source, tmp_path, **rows):
    target = label_of(tmp_path / "target.nii.gz", **rows)
    return PlannedCase("new", source, target, "", "transplanted", {}, 4)


def test_a_history_with_which_the_tissue_never_occurs_is_withheld(training, tmp_path):
    """The failure that was shown: consolidation was painted into smokers, who never have any, and told so."""
    joint = Joint(training)
    found = joint.holds(planned(training[0], tmp_path, emphysema=3, consolidation=1))
    assert "history" not in found and found["age"] == 60
    assert joint.holds(planned(training[0], tmp_path, emphysema=2))["history"] == "smoker"


def test_a_history_is_withheld_where_there_is_more_of_a_tissue_than_any_such_patient_has(training, tmp_path):
    joint = Joint(training)
    assert joint.holds(planned(training[2], tmp_path, ground_glass=2, consolidation=2))["history"] == "post-infection"
    assert "history" not in joint.holds(planned(training[2], tmp_path, ground_glass=2, consolidation=3))


def test_a_host_without_a_history_gets_that_of_the_case_which_its_map_follows(training, tmp_path):
    joint, host = Joint(training), dataclasses.replace(training[2], about={})

    def told(source=host, follows="c1", **rows):
        return joint.holds(dataclasses.replace(planned(source, tmp_path, **rows), follows=follows)).get("history")

    assert told(ground_glass=2, consolidation=2) == "post-infection" and told(ground_glass=3) == "post-infection"
    assert told(ground_glass=4) is None, "twice what any such patient has"
    assert told(ground_glass=2, emphysema=1) is None, "no such patient has any"
    assert told(follows=None, ground_glass=2) is None and told(follows="c0", emphysema=2) == "smoker"
    assert told(source=dataclasses.replace(host, about={"history": None}), emphysema=2, follows="c0") == "smoker"
    assert told(source=training[0], follows="c1", ground_glass=2) is None, "its own history is no other's"


def test_severity_is_that_of_the_target_map_and_withheld_where_it_is_another_number(training, tmp_path):
    """The failure that was shown: the severity told was that of the CT before painting."""
    target = planned(training[2], tmp_path, ground_glass=2, consolidation=1)
    assert Joint(training).holds(target)["severity"] == pytest.approx(0.3)
    scored = [Case(c.image, c.label, c.patient, 0, about=dict(c.about) | {"severity": 7}) for c in training]
    assert "severity" not in Joint(scored).holds(target)


def test_densities_are_those_of_the_donors_by_their_voxels_and_untold_where_none_holds_the_tissue(training, tmp_path):
    for number, case in enumerate(training):
        label = np.asarray(nib.load(case.label).dataobj)
        hu = np.where(label == LABELS["ground_glass"], -500 - 100 * number, 40).astype(np.int16)
        hu[-1] = -850
        nib.save(nib.Nifti1Image(hu, np.eye(4)), tmp_path / f"ct{number}.nii.gz")
    training = [Case(tmp_path / f"ct{n}.nii.gz", case.label, case.patient, 0) for n, case in enumerate(training)]
    target = planned(training[0], tmp_path, ground_glass=2, consolidation=1, fibrosis=1)
    donors = [{"case": "ct1", "tissue": "ground_glass", "voxels": 3}, {"case": "ct2", "tissue": "x", "voxels": 1}]
    target = dataclasses.replace(target, donors=donors, volume_ml=dict.fromkeys(TISSUES, 1.0))
    told = Densities(training).told(target)
    assert told == {"density_ground_glass": -625.0, "density_consolidation": 40.0}
    write_conditions({"new": told, "other": {"age": 60}}, {"age": [0, 99]}, tmp_path / "conditions.csv")
    assert pandas.read_csv(tmp_path / "conditions.csv").density_ground_glass.tolist()[0] == -625.0
