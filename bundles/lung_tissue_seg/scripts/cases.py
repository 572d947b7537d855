"""Which CTs to label or to learn from: NIfTI files, and folders that each hold one DICOM series."""

from pathlib import Path

from monai.data import load_decathlon_datalist

from .dicom import check_case, find_series


def find_cts(dataset_dir: str) -> list[str]:
    """Return every NIfTI file directly in a folder, every subfolder that holds DICOM, and the folder if it does.

    Args:
        dataset_dir: Folder to look in.

    Returns:
        Paths in order.

    Raises:
        FileNotFoundError: If the folder does not exist, or holds no CT.
        ValueError: If a DICOM folder is not one whole series of CT; see :func:`check_case`.
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


def datalist_cases(datalist: str, fold: int, held_out: bool) -> list[dict]:
    """Return a datalist's training items of the patients who are trained on, or of those who are held out.

    Args:
        datalist: JSON file whose ``training`` items have image, label (relative to the file's folder) and fold.
        fold: The fold that is held out.
        held_out: True for that fold's items, False for all others.

    Returns:
        The items with whole paths.

    Raises:
        ValueError: If an item has no fold, no item is left, or an image is a folder that is not one whole series of CT;
            see :func:`check_case`.
    """
    items = load_decathlon_datalist(datalist)
    without = [str(item["image"]) for item in items if "fold" not in item]
    if without:
        raise ValueError(f"{datalist} gives no fold for {without[0]}; make it with `python -m tools dataset`")
    chosen = [item for item in items if (item["fold"] == fold) == held_out]
    if not chosen:
        raise ValueError(f"datalist: {'no' if held_out else 'every'} case is in the fold")
    for item in chosen:
        if Path(item["image"]).is_dir():
            check_case(Path(item["image"]))
    return chosen
