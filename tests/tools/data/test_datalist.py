"""A datalist from elsewhere: what is no datalist is told in a sentence, and no text in it is run."""

import json

import pytest

from tools.data.datalist import read_datalist
from tools.io.files import InputError

GOOD = {"image": "images/a.nii.gz", "label": "labels/a.nii.gz", "patient": "p", "fold": 0}


@pytest.mark.parametrize(
    ("item", "told"),
    [
        (GOOD | {"history": "$__import__('os').system('true')"}, "which could run code; write the value itself"),
        (GOOD | {"history": "@seed"}, "which could run code"),
        (GOOD | {"age": " %run"}, "which could run code"),
        ("a.nii.gz", "item 0 is a.nii.gz, not a case with the files image and label"),
        (GOOD | {"image": 7}, "item 0 is .*, not a case with"),
        (GOOD | {"fold": "one"}, "item 0 has fold 'one'; expected 0, 1, 2"),
        (GOOD | {"fold": True}, "item 0 has fold True"),
        (GOOD | {"image": "../../../../../etc/hostname"}, "datalist.json: item 0"),
    ],
)
def test_a_damaged_or_hostile_datalist_is_refused(tmp_path, item, told):
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"labels": {"0": "background"}, "training": [item]}), encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_datalist(path)


def test_training_that_is_no_list_is_refused(tmp_path):
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"labels": {"0": "background"}, "training": {"a": 1}}), encoding="utf-8")
    with pytest.raises(InputError, match="training is no list; python -m tools dataset makes a datalist"):
        read_datalist(path)
