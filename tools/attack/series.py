"""How a DICOM series is damaged: one function per kind of damage, each draws the rest."""

import copy
from pathlib import Path

import numpy as np

from tools.attack.files import BITS, Attack

TAGS = ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope")
TAGS += ("RescaleIntercept", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
TAGS += ("NumberOfFrames", "Modality", "SeriesInstanceUID", "SOPClassUID", "InstanceNumber", "SliceThickness")
WORDS = ("", "0", "-1", "99999999", "nan", "1e40", "abc", "1\\2", "0\\0\\0", "0\\0\\0\\0\\0\\0")


def write_series(array: np.ndarray, affine: np.ndarray, folder: Path) -> list[Path]:
    """Write whole HU, shape (columns, rows, slices), as a series, by pydicom's example of a CT; return its files."""
    from pydicom import examples
    from pydicom.uid import generate_uid

    lps = np.diag([-1, -1, 1, 1]) @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    folder.mkdir(parents=True)
    template, files = copy.deepcopy(examples.ct), []
    for keyword in ("PixelPaddingValue", "DataSetTrailingPadding", "SliceLocation"):
        if keyword in template:
            delattr(template, keyword)
    template.SeriesInstanceUID = generate_uid()
    template.ImageType, template.Modality = ["DERIVED", "PRIMARY", "AXIAL"], "CT"
    template.RescaleSlope, template.RescaleIntercept = 1, -1024
    template.BitsAllocated, template.BitsStored, template.HighBit, template.PixelRepresentation = 16, 16, 15, 1
    template.Columns, template.Rows = array.shape[:2]
    template.PixelSpacing = [round(float(size), 9) for size in sizes[1::-1]]
    template.ImageOrientationPatient = (lps[:3, :2] / sizes[:2]).T.ravel().round(9).tolist()
    for place in range(array.shape[2]):
        slice_ = copy.deepcopy(template)
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_.InstanceNumber = place + 1
        slice_.ImagePositionPatient = [round(float(value), 6) for value in (lps @ [0, 0, place, 1])[:3]]
        slice_.PixelData = (array[..., place].T + 1024).astype("<i2").tobytes()
        files.append(folder / f"IM{place:04d}")
        slice_.save_as(files[-1])
    return files


def _change(path: Path, keyword: str, value: object) -> None:
    """Set a tag of a file to anything, whether it is allowed there or not."""
    import pydicom
    from pydicom.dataelem import DataElement

    slice_ = pydicom.dcmread(path)
    tag = pydicom.datadict.tag_for_keyword(keyword)
    kind = pydicom.datadict.dictionary_VR(tag).split(" ")[0]
    if kind == "US":
        value = int(np.clip(int(float(value)) if value in ("0", "-1", "99999999") else 65535, 0, 65535))
        slice_[tag] = DataElement(tag, kind, value)
    else:
        slice_[tag] = DataElement(tag, "LO", value)
    slice_.save_as(path)


def _pick(rng, files: list[Path]) -> list[Path]:
    """Return one file or all."""
    return files if rng.random() < 0.5 else [files[int(rng.integers(len(files)))]]


def tag(rng, array, affine, path) -> Path:
    """Set one tag of one file or of all to nonsense."""
    keyword, word = str(rng.choice(TAGS)), str(rng.choice(WORDS))
    for file in _pick(rng, write_series(array, affine, path)):
        _change(file, keyword, word)
    return path


def without(rng, array, affine, path) -> Path:
    """Take one tag away, of one file or of all."""
    import pydicom

    keyword = str(rng.choice(TAGS))
    for file in _pick(rng, write_series(array, affine, path)):
        slice_ = pydicom.dcmread(file)
        if keyword in slice_:
            delattr(slice_, keyword)
        slice_.save_as(file)
    return path


def numbers(rng, array, affine, path) -> Path:
    """Give equal, doubled, restarting, shuffled or no InstanceNumbers."""
    import pydicom

    files = write_series(array, affine, path)
    count = len(files)
    kinds = ([1] * count, rng.integers(1, 4, count), np.arange(count) % 3, rng.permutation(count), [None] * count)
    for file, number in zip(files, kinds[int(rng.integers(len(kinds)))]):
        slice_ = pydicom.dcmread(file)
        slice_.InstanceNumber = None if number is None else int(number)
        slice_.save_as(file)
    return path


def cut(rng, array, affine, path) -> Path:
    """Cut a slice anywhere."""
    file = write_series(array, affine, path)[int(rng.integers(array.shape[2]))]
    file.write_bytes(file.read_bytes()[: int(rng.integers(0, file.stat().st_size))])
    return path


def bits(rng, array, affine, path) -> Path:
    """Flip bits of the header of a slice."""
    file = write_series(array, affine, path)[int(rng.integers(array.shape[2]))]
    content = bytearray(file.read_bytes())
    end = len(content) - array.shape[0] * array.shape[1] * 2
    for place in rng.integers(0, end, int(rng.integers(1, BITS + 1))):
        content[place] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)
    return path


def lacking(rng, array, affine, path) -> Path:
    """Take a slice away that is neither the first nor the last."""
    write_series(array, affine, path)[int(rng.integers(1, array.shape[2] - 1))].unlink()
    return path


def twice(rng, array, affine, path) -> Path:
    """Put a slice there a second time."""
    file = write_series(array, affine, path)[int(rng.integers(array.shape[2]))]
    (path / str(rng.choice(["copy", "IM9999.dcm", "A"]))).write_bytes(file.read_bytes())
    return path


def beside(rng, array, affine, path) -> Path:
    """Put other things into the folder: hidden files, texts, an index, links in circles."""
    write_series(array, affine, path)
    for name in rng.choice([".DS_Store", "Thumbs.db", "readme.txt", "report.pdf", "._IM0000", "LICENSE"], 3):
        (path / str(name)).write_bytes(rng.bytes(200))
    (path / "circle").symlink_to(path)
    return path


def foreign(rng, array, affine, path) -> Path:
    """Put a file there that is neither DICOM nor known."""
    write_series(array, affine, path)
    (path / str(rng.choice(["IM9999", "scan.ima", "slice.dcm"]))).write_bytes(rng.bytes(int(rng.integers(0, 3000))))
    return path


def bare(rng, array, affine, path) -> Path:
    """Write slices without preamble and file header, some or all, implicit or explicit."""
    import pydicom

    implicit = bool(rng.random() < 0.5)
    for file in _pick(rng, write_series(array, affine, path)):
        slice_ = pydicom.Dataset(pydicom.dcmread(file))
        slice_.save_as(file, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    return path


def moved(rng, array, affine, path) -> Path:
    """Move a slice along or across the others by some millimetres."""
    import pydicom

    file = write_series(array, affine, path)[int(rng.integers(1, array.shape[2] - 1))]
    slice_ = pydicom.dcmread(file)
    step = float(np.linalg.norm(affine[:3, 2]))
    place = np.array(slice_.ImagePositionPatient, float) + rng.choice([-1, 1], 3) * rng.uniform(0.3, 2) * step
    slice_.ImagePositionPatient = [round(float(value), 4) for value in place]
    slice_.save_as(file)
    return path


def rounded(rng, array, affine, path) -> Path:
    """Round the positions to two decimals, which is no fault."""
    import pydicom

    for file in write_series(array, affine, path):
        slice_ = pydicom.dcmread(file)
        slice_.ImagePositionPatient = [round(float(value), 2) for value in slice_.ImagePositionPatient]
        slice_.save_as(file)
    return path


def named(rng, array, affine, path) -> Path:
    """Give the folder a hostile name."""
    path = path.with_name(str(rng.choice(["a b", "[1]", "1.2.840", "@id", "%run", "#1", "ü", "$x", "x" * 200])))
    write_series(array, affine, path)
    return path


SERIES = (
    Attack("a tag set to nonsense", tag, False),
    Attack("a tag taken away", without, False),
    Attack("InstanceNumbers that lie", numbers, True),
    Attack("a slice cut short", cut, False, True),
    Attack("bits flipped in a slice's header", bits, False),
    Attack("a slice missing", lacking, False, True),
    Attack("a slice twice", twice, True),
    Attack("other files, links in circles", beside, True),
    Attack("a file that is no DICOM", foreign, False, True),
    Attack("slices without preamble", bare, True),
    Attack("a slice moved", moved, False, True),
    Attack("positions rounded", rounded, True),
    Attack("hostile folder names", named, True),
)
