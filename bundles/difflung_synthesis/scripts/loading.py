"""Reading a CT and its maps, and refusing what was read but cannot be right.

Both bundles have this file, letter by letter, since neither may read from the other.
"""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor, NibabelReader, PydicomReader
from monai.transforms import MapTransform, Orientation
from monai.utils import ensure_tuple

from .dicom import check_series, series_affine
from .volumes import (
    case_name,
    check_affine,
    check_grid,
    check_hu,
    check_values,
    check_whole,
    read_nifti,
    series_name,
)


class SeriesReader(ImageReader):
    """Reads a folder with one DICOM series in the order of :func:`check_series`; any other file is another reader's.

    The pixels are read by MONAI's PydicomReader, which by itself goes by InstanceNumber, passes files without preamble
    over, and takes brackets in a folder's name for a pattern.
    """

    def verify_suffix(self, filename: Sequence[os.PathLike | str] | os.PathLike | str) -> bool:
        """Return whether it is a folder."""
        return all(Path(name).is_dir() for name in ensure_tuple(filename))

    def read(self, data: Sequence[os.PathLike | str] | os.PathLike | str, **kwargs) -> list:
        """Return the slices of a folder, in order; ValueError if it is not one whole series of CT."""
        import pydicom

        (folder,) = ensure_tuple(data)
        if not self.verify_suffix(folder):
            raise ValueError(f"{folder} is no folder")
        files = check_series(Path(folder))
        slices = [pydicom.dcmread(path, force=True, **kwargs) for path in files]
        for number, one in enumerate(slices):
            one.InstanceNumber = number  # by which PydicomReader orders
            if "TransferSyntaxUID" not in getattr(one, "file_meta", {}):
                one.file_meta = pydicom.dataset.FileMetaDataset()
                implicit, little = one.original_encoding
                syntax = "ImplicitVRLittleEndian" if implicit else "ExplicitVRLittleEndian"
                one.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax if little else "ExplicitVRBigEndian")
        self.files = files
        return slices

    def get_data(self, img: list) -> tuple[np.ndarray, dict]:
        """Return HU, shape (columns, rows, slices), and metadata, of what :meth:`read` gave."""
        reader = PydicomReader()
        reader.filenames, reader.has_series = [self.files], True
        return reader.get_data(img)


class NiftiReader(NibabelReader):
    """Reads a NIfTI file once, its checksum too; any other file is another reader's."""

    def get_data(self, img: nib.Nifti1Image) -> tuple[np.ndarray, dict]:
        """Return voxels, shape (W, H, D), and metadata, of what :meth:`read` gave; ValueError if it is damaged."""
        read = read_nifti(img.get_filename())  # not self.filenames: threads share a reader
        return super().get_data(type(img)(read, img.affine, img.header))


class CheckVolumesd(MapTransform):
    """Check what was loaded as a CT and as its tissue maps; it stands behind LoadImaged and EnsureChannelFirstd.

    Maps that are stored in another order or direction of axes than their CT are turned: no voxel moves in the patient.
    Labels become whole numbers. A DICOM series must lie where its slices say.

    Args:
        keys: Keys to check, each of shape (1, W, H, D).
        ct: Key of the CT; all others are tissue maps on its grid.
        values: Names of the values that maps may hold, to value; any whole number if None.
        allow_missing_keys: Whether an item may lack a key.

    Raises:
        ValueError: naming the file, what is wrong, and what to do about it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        ct: str = "image",
        values: Mapping[str, int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ct, self.values = ct, values

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict:
        """Return the item with its maps turned as its CT."""
        item = dict(data)
        for key in self.key_iterator(item):
            volume, path = item[key], file_of(item[key], key)
            self._check_volume(volume, path)
            if key == self.ct:
                check_hu(_array(volume), path)
                continue
            check_whole(_array(volume), path)
            if self.ct in item:
                item[key] = self._on_grid(volume, path, item[self.ct])
            item[key] = item[key].round()
            if self.values is not None:
                check_values(_array(item[key]), path, self.values)
        return item

    @staticmethod
    def _check_volume(volume: torch.Tensor, path: str) -> None:
        if volume.ndim != 4 or volume.shape[0] != 1:
            shape = tuple(volume.shape[1:])
            hint = f"save the slice with shape {(*shape, 1)}" if len(shape) == 2 else "save each volume as its own case"
            raise ValueError(f"{path} has {volume.shape[0]} channels of shape {shape}; expected one volume; {hint}")
        if not isinstance(volume, MetaTensor):
            return
        check_affine(volume.affine.numpy(), path)
        if Path(path).is_dir():
            files = check_series(Path(path))
            told, shape = series_affine(files), (*volume.shape[1:3], len(files))
            check_grid(volume.affine.numpy(), volume.shape[1:], path, told, shape, "what its slices tell")

    @staticmethod
    def _on_grid(label: torch.Tensor, path: str, image: torch.Tensor) -> torch.Tensor:
        if not (isinstance(label, MetaTensor) and isinstance(image, MetaTensor)):
            return label
        axes = "".join(nib.aff2axcodes(image.affine.numpy()))
        if axes != "".join(nib.aff2axcodes(label.affine.numpy())):
            label = Orientation(axes, labels=None)(label)
        of_map, of_ct = label.affine.numpy(), image.affine.numpy()
        check_grid(of_map, label.shape[1:], path, of_ct, image.shape[1:], file_of(image, "the CT"))
        return label


def file_of(volume: torch.Tensor, otherwise: str) -> str:
    """Return the file that a tensor was loaded from, or another word where it does not say."""
    return str(volume.meta.get("filename_or_obj") or otherwise) if isinstance(volume, MetaTensor) else otherwise


def _array(volume: torch.Tensor) -> np.ndarray:
    return torch.as_tensor(volume).detach().cpu().numpy() if not isinstance(volume, MetaTensor) else volume.numpy()


class CaseName:
    """Names a saved file after its case, for ``output_name_formatter`` of SaveImaged: dots and series keep theirs.

    Args:
        dataset_dir: Folder in which the cases were found.
    """

    def __init__(self, dataset_dir: str) -> None:
        self.folder = Path(dataset_dir)

    def __call__(self, meta: Mapping, saver) -> dict:
        """Return the words from which MONAI's FolderLayout makes a name; it cuts the ending."""
        path = Path(str(meta.get("filename_or_obj", "")))
        within = path.is_dir() and path.is_relative_to(self.folder)
        name = series_name(path, self.folder) if within else case_name(path)
        return {"subject": f"{name}.nii.gz", "idx": meta.get("patch_index")}
