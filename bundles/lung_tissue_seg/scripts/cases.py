"""Which CTs to label or to learn from: NIfTI files, and folders that each hold one DICOM series."""

from pathlib import Path

from monai.data import load_decathlon_datalist

from .dicom import check_case, find_series


def find_cts(dataset_dir: str) -> list[str]:
    """Return every NIfTI file directly in a folder, every subfolder that holds DICOM, and the folder if it does.

    Args:
        dataset_dir: folder to look in.

    Returns:
        Paths in order.

    Raises:
        FileNotFoundError: if the folder does not exist, or holds no CT.
        ValueError: if a DICOM folder is not one whole series of CT; see :func:`check_case`.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist")
    found = [path for path in folder.iterdir() if path.is_file() and path.name.endswith((".nii", ".nii.gz"))]
    for place in find_series(folder):
        check_case(place)
        found.append(place)
    if not found:
        raise FileNotFoundError(f"{folder} holds neither NIfTI files (.nii, .nii.gz) nor DICOM series")
    return sorted(str(path) for path in found)


def datalist_cases(datalist: str) -> list[dict]:
    """Return the training items of a datalist, whose paths are relative to its own folder.

    Raises:
        ValueError: if an image is a folder that is not one whole series of CT; see :func:`check_case`.
    """
    items = load_decathlon_datalist(datalist)
    for item in items:
        if Path(item["image"]).is_dir():
            check_case(Path(item["image"]))
    return items
