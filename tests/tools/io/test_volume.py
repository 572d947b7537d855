"""Reading NIfTI with checks, and writing it without losing its geometry."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tools.io.files import InputError
from tools.io.volume import (
    case_name,
    check_same_geometry,
    list_cts,
    list_nifti,
    list_volumes,
    load_ct,
    load_labels,
    relative,
    save_nifti,
    spacing_mm,
)

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2}
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, 0.2, -0.1) @ np.diag([-0.7, 0.8, 2.5]), [-120.5, 80, 12]
)


def save(array: np.ndarray, path: Path, affine: np.ndarray = OBLIQUE, **header) -> Path:
    image = nib.Nifti1Image(array, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def test_scaled_integers_are_read_as_hu(tmp_path):
    hu = np.linspace(-1024, 700, 24).reshape(4, 3, 2)
    image = nib.Nifti1Image(hu, OBLIQUE)
    image.set_data_dtype(np.int16)  # nibabel chooses scl_slope and scl_inter
    nib.save(image, tmp_path / "scaled.nii.gz")
    assert nib.load(tmp_path / "scaled.nii.gz").dataobj.slope != 1
    loaded, file = load_ct(tmp_path / "scaled.nii.gz")
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, hu, atol=0.05)
    save_nifti(loaded.astype(np.int16), file, tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "again.nii.gz").dataobj), loaded.astype(np.int16))


def test_ct_cropped_to_the_inside_of_the_body_is_read(tmp_path):
    hu = np.linspace(-640, 300, 24).astype(np.int16).reshape(4, 3, 2)
    assert load_ct(save(hu, tmp_path / "crop.nii"))[0].min() == -640


def test_ct_without_air_or_without_contrast_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"soft\.nii ranges from -200 to 300, which cannot be HU"):
        load_ct(save(np.linspace(-200, 300, 24).reshape(4, 3, 2), tmp_path / "soft.nii"))
    with pytest.raises(InputError, match=r"flat\.nii ranges from -1000 to -1000, which cannot be HU"):
        load_ct(save(np.full((4, 3, 2), -1000, np.int16), tmp_path / "flat.nii"))


def test_written_file_keeps_geometry_codes_and_dtype(tmp_path):
    save(np.zeros((4, 3, 2), np.float32), tmp_path / "a.nii.gz", qform_code=1, sform_code=1, xyzt_units=2)
    like = nib.load(tmp_path / "a.nii.gz")
    save_nifti(np.full((4, 3, 2), 2, np.uint8), like, tmp_path / "b.nii.gz", description="x" * 100)
    written = nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(written.affine, like.affine)
    assert [int(written.header[key]) for key in ("qform_code", "sform_code", "xyzt_units")] == [1, 1, 2]
    assert written.get_data_dtype() == np.uint8 and np.asarray(written.dataobj).max() == 2
    assert written.header["descrip"].item() == b"x" * 79
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_spacing_of_an_oblique_file_is_its_voxel_size(tmp_path):
    path = save(np.zeros((4, 3, 2), np.float32), tmp_path / "a.nii.gz")
    assert spacing_mm(nib.load(path)) == pytest.approx([0.7, 0.8, 2.5], rel=1e-5)


def test_geometry_may_differ_by_rounding_only(tmp_path):
    array = np.zeros((400, 3, 2), np.uint8)
    image = nib.load(save(array, tmp_path / "a.nii"))
    rounded = nib.load(save(array, tmp_path / "b.nii", OBLIQUE + 1e-3 * np.eye(4, k=3)))
    check_same_geometry(image, rounded, Path("a.nii"), Path("b.nii"))
    stretched = nib.load(save(array, tmp_path / "c.nii", OBLIQUE @ np.diag([1.001, 1, 1, 1])))
    with pytest.raises(
        InputError, match=r"c\.nii has another affine than a\.nii \(voxels lie up to 0\.2\d* mm apart, 0\.399 voxels\)"
    ):
        check_same_geometry(image, stretched, Path("a.nii"), Path("c.nii"))


def test_unusable_affine_is_refused(tmp_path):
    path = save(np.linspace(-1000, 0, 24).reshape(4, 3, 2), tmp_path / "a.nii", np.eye(4))
    content = bytearray(path.read_bytes())
    content[296:312] = bytes(16)  # the second row of the affine (srow_y)
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"a\.nii has no usable affine: its voxels are 1 x 0 x 1 mm; expected 0\.05 to 100 mm"
    ):
        load_ct(path)


def test_colour_picture_and_empty_volume_are_refused(tmp_path):
    colour = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(InputError, match=r"rgb\.nii holds voxels of type .*expected one number per voxel"):
        load_ct(save(colour, tmp_path / "rgb.nii"))
    with pytest.raises(InputError, match=r"none\.nii is empty: its shape is \(4, 0, 2\)"):
        load_labels(save(np.zeros((4, 0, 2), np.uint8), tmp_path / "none.nii"), LABELS)


def test_missing_file_and_file_that_is_no_nifti_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent\.nii\.gz does not exist"):
        load_ct(tmp_path / "absent.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no NIfTI")
    with pytest.raises(InputError, match=r"text\.nii\.gz cannot be read as NIfTI, it may be truncated"):
        load_ct(tmp_path / "text.nii.gz")


def test_truncated_uncompressed_file_is_refused(tmp_path):
    path = save(np.linspace(-1000, 0, 24).reshape(4, 3, 2), tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"a\.nii cannot be read as NIfTI, it may be truncated"):
        load_ct(path)


def test_labels_stored_as_floats_are_read_and_others_refused(tmp_path):
    array = np.array([0, 1, 2, 2], np.float64).reshape(2, 2, 1)
    tissue, _ = load_labels(save(array, tmp_path / "a.nii"), LABELS)
    assert tissue.dtype == np.int16 and tissue.ravel().tolist() == [0, 1, 2, 2]
    with pytest.raises(InputError, match=r"b\.nii holds label 0\.5, but labels must be integers"):
        load_labels(save(array / 2, tmp_path / "b.nii"), LABELS)
    with pytest.raises(InputError, match=r"c\.nii holds label nan, but labels must be integers"):
        load_labels(save(np.where(array > 1, np.nan, array), tmp_path / "c.nii"), LABELS)
    with pytest.raises(
        InputError, match=r"d\.nii holds label -1, but labels name only background=0, healthy=1, ground"
    ):
        load_labels(save(array - 1, tmp_path / "d.nii"), LABELS)


def test_foreign_labels_are_translated_by_name(tmp_path):
    path = save(np.array([0, 40000, 3, 1], np.int32).reshape(2, 2, 1), tmp_path / "a.nii")
    tissue, _ = load_labels(path, LABELS, {40000: "ground_glass", 3: "ground_glass", 1: "healthy"})
    assert tissue.ravel().tolist() == [0, 2, 2, 1]
    with pytest.raises(InputError, match=r"a\.nii holds label 40000, but label_map names only 0=background, 3=gr"):
        load_labels(path, LABELS, {3: "ground_glass", 1: "healthy"})


def test_listing_is_sorted_and_skips_what_is_no_case(tmp_path):
    for name in ("b.nii", "a.nii.gz", ".hidden.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.nii").mkdir()
    assert list(list_nifti(tmp_path).items()) == [("a", tmp_path / "a.nii.gz"), ("b", tmp_path / "b.nii")]
    assert case_name("x/patient.1.nii.gz") == "patient.1"


def test_relative_path_leads_to_the_file_through_linked_folders(tmp_path):
    (tmp_path / "disk/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk/deep")
    (tmp_path / "a.nii").touch()
    (tmp_path / "disk/b.nii").symlink_to(tmp_path / "a.nii")
    assert relative(tmp_path / "a.nii", tmp_path / "link/new") == "../../../a.nii"
    assert relative(tmp_path / "disk/b.nii", tmp_path / "link") == "../b.nii"


def test_results_below_the_folder_of_cts_are_no_cts_of_the_next_run(tmp_path):
    for name in ("a.nii.gz", "b.NII.GZ", "out/a_tissues.nii.gz", ".partial-x.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(np.zeros((4, 3, 2), np.int16), tmp_path / name)
    found, passed = list_volumes(tmp_path)
    assert list(found) == list(list_cts(tmp_path)) == ["a", "b"]
    assert passed == {"out": "a folder of 1 volumes; name it itself"}


def test_digits_that_differ_are_shown(tmp_path):
    image = nib.load(save(np.zeros((4, 3, 2), np.uint8), tmp_path / "a.nii"))
    apart = nib.load(save(np.zeros((4, 3, 2), np.uint8), tmp_path / "b.nii", OBLIQUE + 0.12345 * np.eye(4, k=3)))
    with pytest.raises(InputError, match=r"lie up to 0\.12345\d? mm apart"):
        check_same_geometry(image, apart, Path("a.nii"), Path("b.nii"))
    with pytest.raises(InputError, match=r"holds label 0\.99812, but labels must be integers"):
        load_labels(save(np.full((2, 2, 1), 0.99812), tmp_path / "c.nii"), LABELS)
