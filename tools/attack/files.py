"""How a CT or a tissue map is damaged: one function per kind of damage, each draws the rest."""

import gzip
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

Make = Callable[[np.random.Generator, np.ndarray, np.ndarray, Path], Path]
BITS = 5  # flipped at most in a file
NONSENSE = (0, -1, 1, 7, 255, 2**15 - 1, -(2**15), 2**31 - 1, np.nan, np.inf, -np.inf, 1e-30, 1e30, -3.5)
NAMES = (
    "a b",
    "quote'",
    'quotes"',
    "[1]",
    "(x)",
    "@id",
    "%run",
    "#1",
    "$HOME",
    "&",
    "a;b,c",
    "--output",
    "*",
    "ünïcödé",
)
NAMES += (unicodedata.normalize("NFD", "Müller"), "x" * 200, "1.2.840.1", "a\nb", "<b>", "{{ 7 }}", "~", "a...", "CON")


@dataclass(frozen=True)
class Attack:
    """A kind of damage.

    Attributes:
        name: What is damaged, in words.
        make: Writes an array with an affine, damaged, at or near a path, and returns the file or folder.
        same: Whether the volume means what it meant before, so that an answer must be the undamaged one's.
        bad: Whether it must be refused.
    """

    name: str
    make: Make
    same: bool
    bad: bool = False


def whole(array: np.ndarray, affine: np.ndarray, kind: type = nib.Nifti1Image) -> nib.Nifti1Image:
    """Return an image whose qform and sform both say where it lies."""
    image = kind(array, affine, dtype=array.dtype)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return image


def write(array: np.ndarray, affine: np.ndarray, path: Path, ending: str = ".nii.gz") -> Path:
    """Write an array as NIfTI beside a path that has no ending, and return the file."""
    path = path.with_name(path.name + ending)
    nib.save(whole(array, affine), path)
    return path


def truncated(rng, array, affine, path) -> Path:
    """Cut a file anywhere."""
    path = write(array, affine, path, str(rng.choice([".nii", ".nii.gz"])))
    os.truncate(path, int(rng.integers(0, path.stat().st_size)))
    return path


def flipped(ending: str, first: int = 0, end: int | None = None) -> Make:
    """Return what flips bits anywhere among the bytes of a file from the first to the end, the last one excluded."""

    def make(rng, array, affine, path) -> Path:
        path = write(array, affine, path, ending)
        content = bytearray(path.read_bytes())
        for place in rng.integers(first, end or len(content), int(rng.integers(1, BITS + 1))):
            content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        return path

    return make


def field(rng, array, affine, path) -> Path:
    """Set one value of one header field to nonsense."""
    path = write(array, affine, path, ".nii")
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    name = str(rng.choice([key for key in header.keys()]))
    value = header[name]
    with np.errstate(all="ignore"):
        if value.dtype.kind == "S":
            header[name] = bytes(rng.integers(0, 256, value.dtype.itemsize, dtype=np.uint8))
        else:
            changed = np.array(value, copy=True).reshape(-1)
            wrong = NONSENSE[int(rng.integers(len(NONSENSE)))]
            kind = changed.dtype
            if kind.kind in "iu":
                limits = np.iinfo(kind)
                wrong = int(np.clip(np.nan_to_num(wrong), limits.min, limits.max))
            changed[int(rng.integers(changed.size))] = wrong
            header[name] = changed.reshape(value.shape)
    content[:348] = header.binaryblock
    path.write_bytes(content)
    return path


def terabytes(rng, array, affine, path) -> Path:
    """Declare a shape of terabytes in a small file."""
    path = write(array, affine, path, ".nii")
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header["dim"][1:4] = rng.integers(8000, 32000, 3)
    content[:348] = header.binaryblock
    if rng.random() < 0.5:
        path.unlink()
        path = path.with_name(path.name + ".gz")
        with gzip.open(path, "wb") as stream:
            stream.write(content)
    else:
        path.write_bytes(content)
    return path


def bomb(rng, array, affine, path) -> Path:
    """Write hundreds of megabytes of nothing, compressed a thousandfold, behind a header that tells of them."""
    header = whole(array, affine).header.copy()
    sides = [int(side) for side in rng.integers(400, 700, 3)]
    header.set_data_shape(sides)
    header["vox_offset"] = 352
    path = path.with_name(path.name + ".nii.gz")
    with gzip.open(path, "wb", compresslevel=6) as stream:
        stream.write(header.binaryblock + bytes(4))
        left = int(np.prod(sides)) * header.get_data_dtype().itemsize
        while left > 0:
            stream.write(bytes(min(left, 1 << 24)))
            left -= 1 << 24
    return path


def dimensions(rng, array, affine, path) -> Path:
    """Write a volume of one, two, four or five dimensions, or of no voxel."""
    number = int(rng.integers(5))
    array = (array[:, 0, 0], array[..., 0], array[..., None].repeat(2, 3), array[..., None, None], array[:0])[number]
    path = path.with_name(path.name + ".nii.gz")
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def of_type(*kinds: str) -> Make:
    """Return what stores voxels in another type: complex numbers, colours, or one that keeps the values."""

    def make(rng, array, affine, path) -> Path:
        kind = str(rng.choice(kinds))
        if kind == "rgb":
            array = np.repeat(array.astype(np.uint8)[..., None], 3, -1).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[
                ..., 0
            ]
        else:
            array = array.astype(kind)
        return write(array, affine, path)

    return make


def scaling(rng, array, affine, path) -> Path:
    """Set the scaling to what is none, or to infinity."""
    path = write(array, affine, path, ".nii")
    content = bytearray(path.read_bytes())
    slope, inter = rng.choice([0, np.nan, np.inf, -np.inf, 1e30, -1], 2)
    content[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(content)
    return path


def no_scaling(rng, array, affine, path) -> Path:
    """Set the slope to 0 or NaN, which the standard reads as no scaling."""
    path = write(array, affine, path, ".nii")
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([rng.choice([0, np.nan]), 0], "<f4").tobytes()
    path.write_bytes(content)
    return path


def big_endian(rng, array, affine, path) -> Path:
    """Write the other order of bytes."""
    image = whole(array, affine)
    header = image.header.as_byteswapped(">")
    path = path.with_name(path.name + str(rng.choice([".nii", ".nii.gz"])))
    nib.save(nib.Nifti1Image(array, affine, header), path)
    return path


def nifti2(rng, array, affine, path) -> Path:
    """Write NIfTI-2."""
    path = path.with_name(path.name + str(rng.choice([".nii", ".nii.gz"])))
    nib.save(whole(array, affine, nib.Nifti2Image), path)
    return path


def not_numbers(rng, array, affine, path) -> Path:
    """Put NaN or infinity into some voxels."""
    array = array.astype(np.float32)
    places = rng.integers(0, array.size, int(rng.integers(1, 100)))
    array.reshape(-1)[places] = rng.choice([np.nan, np.inf, -np.inf])
    return write(array, affine, path)


def other_units(rng, array, affine, path) -> Path:
    """Shift or scale the values, as raw values and pictures are."""
    array = array.astype(np.float32)
    number = int(rng.integers(4))
    array = (array + 1024, (array + 1024) / 4096 * 255, array / 1000, array - 1024)[number]
    return write(array, affine, path)


def other_grid(rng, array, affine, path) -> Path:
    """Move, stretch or crop a volume."""
    number = int(rng.integers(3))
    if number == 0:
        affine = affine + np.eye(4, k=3) * float(rng.uniform(1, 50)) * np.linalg.norm(affine[:3, 0])
    elif number == 1:
        affine = affine @ np.diag([1, 1, float(rng.uniform(1.1, 3)), 1])
    else:
        array = array[1:]
    return write(array, affine, path)


def other_axes(rng, array, affine, path) -> Path:
    """Store the axes in another order and direction, no voxel moving."""
    turn = np.stack([rng.permutation(3), rng.choice([-1, 1], 3)], axis=1)
    image = nib.Nifti1Image(array, affine).as_reoriented(turn)
    return write(np.asarray(image.dataobj), image.affine, path)


def named(rng, array, affine, path) -> Path:
    """Give a file a hostile name."""
    return write(array, affine, path.with_name(NAMES[int(rng.integers(len(NAMES)))]))


def no_nifti(rng, array, affine, path) -> Path:
    """Write random bytes, nothing, a folder or a link that leads to itself under a NIfTI file's name."""
    path = path.with_name(path.name + str(rng.choice([".nii", ".nii.gz"])))
    number = int(rng.integers(4))
    if number == 0:
        path.write_bytes(rng.bytes(int(rng.integers(1, 5000))))
    elif number == 1:
        path.touch()
    elif number == 2:
        path.mkdir()
    else:
        path.symlink_to(path)
    return path


CT_AND_MAP = (
    Attack("cut short", truncated, False, True),
    Attack("bits flipped, gzip", flipped(".nii.gz", 10), True),
    Attack("bits flipped in the header", flipped(".nii", end=352), False),
    Attack("bits flipped in voxels", flipped(".nii", 352), False),
    Attack("a header field set to nonsense", field, False),
    Attack("a shape of terabytes", terabytes, False, True),
    Attack("1 to 5 dimensions, no voxel", dimensions, False),
    Attack("complex numbers, colours", of_type("complex64", "complex128", "rgb"), False, True),
    Attack("other types of number", of_type("float32", "float64", "int32", "int64"), True),
    Attack("scaling of infinity, NaN, 0", scaling, False),
    Attack("no scaling", no_scaling, True),
    Attack("big endian", big_endian, True),
    Attack("NIfTI-2", nifti2, True),
    Attack("NaN or infinite voxels", not_numbers, False, True),
    Attack("axes in another order", other_axes, True),
    Attack("no NIfTI at all", no_nifti, False, True),
)
CT_ALONE = (Attack("HU + 1024, pictures", other_units, False, True), Attack("hostile names", named, True))
CT_ALONE += (Attack("a gzip bomb", bomb, False, True),)
MAP_ALONE = (Attack("a map on another grid", other_grid, False, True), Attack("a gzip bomb as map", bomb, False, True))
