"""``python -m tools dataset``: turn folders of CT and tissue maps into a checked datalist with patient-level folds."""

import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools.data.card import TissueStatistics, card_text, data_card
from tools.data.folds import assign_folds, scarce_tissues
from tools.data.pairs import check_case, pair_files, refuse
from tools.data.patients import read_patients
from tools.data.twins import digest_of, near_duplicates, sketches
from tools.io.files import InputError, check_new_directory, new_directory, read_json, write_json, write_text
from tools.io.volume import canonical, list_volumes, relative, same_axes, save_nifti, spacing_mm
from tools.tissues import tissue_labels, unlabelled_value

HEALTHY_MEDIAN_AT_MOST_HU = -500
UNLABELLED = "unlabelled"
CONVERTED = "HU from DICOM by python -m tools dataset"


def dataset(
    images: Path,
    labels: Path,
    output: Path,
    label_map: Path | dict | None = None,
    patients: Path | None = None,
    folds: int = 5,
    seed: int = 0,
) -> None:
    """Check CT and tissue maps, divide the patients into folds, and write a datalist and a data card.

    An image and its label have the same file name in their folders. Every file is checked and all problems are
    reported together; nothing is written unless all is well. Writes datalist.json (as MONAI's Auto3DSeg reads it),
    data_card.json, data_card.md, with a label map the mapped labels, maps whose axes are stored in another order than
    their CT's in the CT's, and each DICOM series as a NIfTI file; NIfTI images are never copied.

    Args:
        images: Folder of CT in HU: .nii or .nii.gz, each 3D (a single slice has the shape (W, H, 1)), and subfolders
            that each hold one DICOM series, whose case has the subfolder's name.
        labels: Folder of tissue maps, NIfTI, of the same names, shapes and affines.
        output: Folder to create.
        label_map: Values of another label scheme: a JSON file {"foreign value": "tissue name", ...}, or the same on
            the command line, "{1: ground_glass, 3: consolidation}". 0 is background unless it says otherwise. The
            name unlabelled is for voxels of which nothing is known, as {0: unlabelled} where only infections were
            drawn: from such maps the segmenter's bundle can learn, while augment and compare need whole ones.
        patients: CSV file with the columns case (file name without .nii.gz) and patient, and optionally age (years),
            severity (a number), history (text) and fold (given folds are used instead of drawn ones, and ``folds``
            is ignored); other columns are not used. Without it every file counts as a patient of its own.
        folds: Number of folds, at least 2 and at most the number of patients.
        seed: Seed for the folds.

    Raises:
        InputError: if anything about the input is wrong, or ``output`` holds something or cannot be written.
    """
    output = check_new_directory(output)
    scheme = tissue_labels()
    named_values = scheme | {UNLABELLED: unlabelled_value()}
    foreign = None if label_map is None else read_label_map(label_map, named_values)
    if not isinstance(folds, int) or folds < 2:
        raise InputError(f"folds is {folds}, but cross-validation needs at least 2")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is {seed}, but must be a whole number from 0 up")
    problems: list[str] = []
    pairs, unpaired = pair_files(images, labels, problems)
    items, warnings = read_patients(patients, [*pairs, *unpaired], problems)
    for what, folder in (("images", images), ("labels", labels)):
        if passed := list_volumes(folder, series=what == "images")[1]:
            told = "; ".join(f"{name} ({why})" for name, why in passed.items())
            warnings.append(f"passed over {len(passed)} of {what}: {told}")
    if not problems and "fold" not in next(iter(items.values())):
        count = len({item["patient"] for item in items.values()})
        if folds > count:
            few = "is only 1 patient" if count == 1 else f"are only {count} patients"
            raise InputError(f"folds is {folds}, but there {few}; a patient cannot be divided")

    statistics = TissueStatistics(scheme)
    owners: dict[str, str] = {}  # digest of what a CT shows to case
    drawn: dict[str, np.ndarray] = {}
    partly: list[str] = []
    converted: list[str] = []
    written: set[str] = set()  # cases whose map is written anew
    with new_directory(output) as partial:
        for case, (image_path, label_path) in tqdm(pairs.items(), desc="checking", unit="case", disable=None):
            checked = check_case(image_path, label_path, named_values if foreign else scheme, foreign, problems)
            if checked is None:
                continue
            hu, tissue, file = checked
            twin = owners.setdefault(digest_of(hu), case)
            both = [items[name]["patient"] for name in (case, twin) if name in items]
            if len(set(both)) == 2:
                problems.append(
                    f"{image_path} has the same voxels as {pairs[twin][0].name}, but belongs to patient {both[0]} "
                    f"instead of {both[1]}; name one patient, or remove one file"
                )
            drawn[case] = sketches(*(canonical(part, file.affine) for part in (hu, tissue)))
            unknown = tissue == unlabelled_value()
            if unknown.any():
                partly.append(case)
            statistics.add(case, hu, np.where(unknown, 0, tissue), spacing_mm(file))
            if foreign is not None or not same_axes(label_path, file):
                save_nifti(tissue.astype(np.uint8), file, partial / "labels" / f"{case}.nii.gz")
                written.add(case)
            if image_path.is_dir():
                save_nifti(hu.astype(file.get_data_dtype()), file, partial / "images" / f"{case}.nii.gz", CONVERTED)
                converted.append(case)
        refuse(problems)

        sizes = Counter(item["patient"] for item in items.values())
        tissues: dict[str, set[str]] = {patient: set() for patient in sizes}
        for case, item in items.items():
            tissues[item["patient"]] |= statistics.tissues(case)
        if "fold" in next(iter(items.values())):
            fold_of = {item["patient"]: item["fold"] for item in items.values()}
            folds = max(fold_of.values()) + 1
        else:
            fold_of = assign_folds(tissues, folds, seed, sizes)
        warnings += content_warnings(statistics, tissues) + scarce_tissues(tissues, fold_of, folds)
        warnings += near_duplicates(drawn, {case: item["patient"] for case, item in items.items()})
        if partly:
            warnings.append(
                f"voxels are unlabelled in {named(partly)}; only the segmenter's bundle can learn from them, "
                "augment and compare cannot"
            )

        training = []
        for case, item in items.items():
            image, label = (relative(path, output) for path in pairs[case])
            if case in written:
                label = f"labels/{case}.nii.gz"
            if case in converted:
                image = f"images/{case}.nii.gz"
            training.append({"image": image, "label": label} | item | {"fold": fold_of[item["patient"]]})
        name = output.absolute().name
        rows = [{"case": case, **item} for case, item in zip(items, training)]
        card = data_card(name, statistics, rows, folds, warnings, converted)
        write_json(partial / "data_card.json", card)
        write_text(partial / "data_card.md", card_text(card))
        content = {
            "name": name,
            "description": f"CT in HU with tissue maps; {folds} folds of whole patients",
            "modality": "CT",
            "labels": scheme,
            "numTraining": len(training),
            "training": training,
        }
        write_json(partial / "datalist.json", content)

    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    datalist, following = output / "datalist.json", output.with_name(f"{name}_augmented")
    held = f"{len(items)} cases, {len(tissues)} patients, {folds} folds"
    print(f"wrote {datalist} ({held}) and {output / 'data_card.md'}")
    command = ["--datalist", str(datalist), "--fold", "0", "--output", str(following)]
    print(f"next: python -m tools augment {shlex.join(command)}")


def named(things: Iterable[str], shown: int = 5) -> str:
    """Return the first names of a list, and how many there are beyond.

    Example:
        >>> named("abcd", shown=2)
        'a, b and 2 more'
    """
    things = list(things)
    more = f" and {len(things) - shown} more" if len(things) > shown else ""
    return ", ".join(things[:shown]) + more


def read_label_map(label_map: Path | dict, scheme: dict[str, int]) -> dict[int, str]:
    """Read and check a label map, in a file or not: foreign value to tissue name.

    Raises:
        InputError: if a value is no integer or a name is not in ``scheme``.
    """
    source = "label_map" if isinstance(label_map, dict) else f"label_map {label_map}"
    content = label_map if isinstance(label_map, dict) else read_json(label_map)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{source} must look like {{1: ground_glass, 3: consolidation}}, not {content!r}")
    mapping: dict[int, str] = {}
    for value, name in content.items():
        try:
            number = int(str(value))
        except ValueError:
            raise InputError(f"{source} maps {value!r}, but label values are integers") from None
        if name not in scheme:
            raise InputError(f"{source} maps {value} to {name!r}, but the tissues are {', '.join(scheme)}")
        mapping[number] = name
    return mapping


def content_warnings(statistics: TissueStatistics, tissues: dict[str, set[str]]) -> list[str]:
    """Return sentences about content that is allowed but unlikely to be wanted; ``tissues`` is patient to tissues."""
    absent = [name for name in statistics.labels if not any(name in held for held in tissues.values())]
    warnings = [f"no case holds {name}; it can be neither learned nor synthesized from these data" for name in absent]
    blank = [case for case in statistics.voxels if not statistics.tissues(case)]
    if blank:
        warnings.append(f"only background in {named(blank)}")
    dense = [
        case
        for case, medians in statistics.median_hu.items()
        if medians.get("healthy", -1000) > HEALTHY_MEDIAN_AT_MOST_HU
    ]
    if dense:
        warnings.append(
            f"healthy lung has a median above {HEALTHY_MEDIAN_AT_MOST_HU} HU in {named(dense)}; "
            "do the labels lie on the lung, and are the values HU?"
        )
    return warnings
