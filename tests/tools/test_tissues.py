"""The tissues: what 3D Slicer reads of the colour table, and that every copy is made of the one label scheme."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tools.bundles import BUNDLES
from tools.quantify.quantify import quantify
from tools.tissues import COLOUR_TABLE, colour_table, tissue_colours, tissue_labels, words

LABELS = tissue_labels()


def read(text: str) -> dict[int, tuple]:
    """Read a table as Slicer's storage node does: words between blanks, # begins a comment, colours from 0 to 255."""
    rows = csv.reader((line for line in text.splitlines() if line and not line.startswith("#")), delimiter=" ")
    return {int(value): (name, *(float(part) / 255 for part in colour)) for value, name, *colour in rows}


def test_table_holds_every_label_with_the_colour_of_the_pictures():
    table = read(colour_table(LABELS))
    assert {name: value for value, (name, *_) in table.items()} == LABELS
    assert table[0][1:] == (0, 0, 0, 0)
    for name, colour in tissue_colours(LABELS).items():
        np.testing.assert_allclose(table[LABELS[name]][1:], (*to_rgb(colour), 1))


def test_bundle_and_quantify_give_the_same_table(tmp_path):
    assert (BUNDLES / "lung_tissue_seg/docs" / COLOUR_TABLE).read_text() == colour_table(LABELS)
    for kind, array in (("images", np.full((8, 8, 2), -900, np.int16)), ("maps", np.zeros((8, 8, 2), np.uint8))):
        array[0] = 0
        (tmp_path / kind).mkdir()
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / kind / "a.nii.gz")
    quantify(tmp_path / "images", tmp_path / "maps", tmp_path / "out")
    assert (tmp_path / "out" / COLOUR_TABLE).read_text() == colour_table(LABELS)


def test_dicom_names_and_colours_of_the_bundle_are_those_of_the_labels():
    (segments,) = read_dicom()["segmentAttributes"]
    assert {segment["SegmentLabel"]: segment["labelID"] for segment in segments} == {
        words(name): value for name, value in LABELS.items() if value
    }
    for segment, colour in zip(segments, tissue_colours(LABELS).values(), strict=True):
        assert bytes(segment["recommendedDisplayRGBValue"]) == bytes.fromhex(colour[1:])


def test_dicom_codes_of_the_bundle_are_those_of_the_segments_that_the_tools_write():
    pytest.importorskip("highdicom")
    from tools.io.dicom_seg import dcmqi_metadata

    assert read_dicom() == dcmqi_metadata(LABELS)


def read_dicom() -> dict:
    return json.loads((BUNDLES / "lung_tissue_seg/docs/lung_tissues_dicom.json").read_text())
