"""Which CTs to label or to learn from: files of volumes, and folders that each hold one DICOM series."""

from pathlib import Path

from monai.data import load_decathlon_datalist

from .volumes import check_file, list_volumes


def find_cts(dataset_dir: str) -> list[str]:
    """Return every volume directly in a folder and every folder in it that holds a DICOM series, itself included.

    Args:
        dataset_dir: Folder to look in; series are found at any depth.

    Returns:
        Paths in order; none is opened further than to see what it is.

    Raises:
        FileNotFoundError: If the folder does not exist, or holds no CT.
        ValueError: If two CTs have the same case name.
    """
    cases, passed = _listed(dataset_dir)
    if not cases:
        others = "; ".join(f"{name} ({reason})" for name, reason in passed.items())
        raise FileNotFoundError(
            f"{dataset_dir} holds neither NIfTI files (.nii, .nii.gz) nor DICOM series of CT"
            + (f"; passed over: {others}" if others else "")
        )
    return [str(path) for path in cases.values()]


def passed_over(dataset_dir: str) -> dict[str, str]:
    """Return what else lies in the folder that :func:`find_cts` looks in, and why it is no CT to label."""
    return _listed(dataset_dir)[1]


def _listed(dataset_dir: str) -> tuple[dict[str, Path], dict[str, str]]:
    if not Path(dataset_dir).is_dir():
        raise FileNotFoundError(f"the folder {dataset_dir} does not exist")
    return list_volumes(Path(dataset_dir))


def datalist_cases(datalist: str, fold: int, held_out: bool) -> list[dict]:
    """Return a datalist's training items of the patients who are trained on, or of those who are held out.

    Args:
        datalist: JSON file whose ``training`` items have image, label (relative to the file's folder) and fold.
        fold: The fold that is held out.
        held_out: True for that fold's items, False for all others.

    Returns:
        The items with whole paths.

    Raises:
        ValueError: If an item has no fold, no item is left, or a file cannot be used by its header; see
            :func:`scripts.volumes.check_file`.
    """
    items = load_decathlon_datalist(datalist)
    without = [str(item["image"]) for item in items if "fold" not in item]
    if without:
        raise ValueError(f"{datalist} gives no fold for {without[0]}; make it with `python -m tools dataset`")
    chosen = [item for item in items if (item["fold"] == fold) == held_out]
    if not chosen:
        raise ValueError(f"datalist: {'no' if held_out else 'every'} case is in the fold")
    for item in chosen:
        check_file(item["image"], ct=True)
        check_file(item["label"], like=item["image"])
    return chosen
