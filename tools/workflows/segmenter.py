"""The segmenter's bundle as the tools run it: budgets, voxel size, labelling CTs, Dice."""

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tools.bundles import BUNDLES
from tools.data.datalist import Case
from tools.io.files import RunError, read_json
from tools.io.volume import canonical, load_labels, spacing_mm
from tools.tissues import tissue_labels
from tools.workflows.cluster import Job, parts, perform, threads_on
from tools.workflows.run import run_bundle

if TYPE_CHECKING:
    from distributed import Client

SEGMENTER = "lung_tissue_seg"
STEPS_PER_EPOCH_AT_LEAST = 50


def epochs(iterations: int) -> tuple[int, int]:
    """Split a number of optimizer steps exactly into epochs of at least 50 steps, as many epochs as possible.

    Returns:
        Number of epochs and steps per epoch.

    Example:
        >>> epochs(2000), epochs(120), epochs(7)
        ((40, 50), (2, 60), (1, 7))
    """
    most = max(1, iterations // STEPS_PER_EPOCH_AT_LEAST)
    number = next(number for number in range(most, 0, -1) if iterations % number == 0)
    return number, iterations // number


def median_spacing_mm(cases: list[Case]) -> list[float]:
    """Return [s, s, -1]: the median in-plane voxel size of some cases, and slices left as they are."""
    import nibabel as nib

    sizes = [size for case in cases for size in spacing_mm(nib.load(case.image))[:2]]
    size = round(float(np.median(sizes)), 4)
    return [size, size, -1]


def label_cts(
    images: dict[str, Path], weights: Path, answers: Path, settings: dict, log: Path, variables: dict | None = None
) -> None:
    """Label CTs in one run of the segmenter's inference.

    Args:
        images: Case to CT.
        weights: Weights of the segmenter.
        answers: Folder for the tissue maps, ``CASE_tissues.nii.gz`` unless ``output_postfix`` says otherwise.
        settings: Config ids of the inference and their values.
        log: Log of the run.
        variables: Environment variables of the run.
    """
    with tempfile.TemporaryDirectory() as name:
        links = {Path(name, "model.pt"): weights}
        for case, path in images.items():
            links[Path(name, "cts", f"{case}{'.nii.gz' if str(path).endswith('.gz') else '.nii'}")] = path
        for link, target in links.items():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(Path(target).absolute())
        places = {"dataset_dir": str(Path(name, "cts")), "model_dir": name, "output_dir": str(answers)}
        run_bundle(SEGMENTER, ["inference.json"], settings | places, log, variables)


def of_inference(settings: dict) -> dict:
    """Return those settings of a training that the inference has too."""
    known = read_json(BUNDLES / SEGMENTER / "configs/inference.json")
    return {key: value for key, value in settings.items() if key.split("::")[0] in known}


class Answers(Mapping):
    """Case to the tissue map that a segmenter answered, canonical orientation; each is read when it is asked for."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files

    def __getitem__(self, case: str) -> np.ndarray:
        answer, image = load_labels(self.files[case], tissue_labels())
        return canonical(answer, image.affine)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def segment(
    images: dict[str, Path], weights: Path, card: dict, work: Path, client: "Client | None" = None, threads: int = 1
) -> Answers:
    """Return what a segmenter answers for some CTs.

    Args:
        images: Case to CT.
        weights: Weights of the segmenter.
        card: The card beside the weights: ``overrides`` of their training and ``spacing_mm``.
        work: Folder for the answers.
        client: From ``cluster``; its workers share the CTs.
        threads: Threads of the CPU of each worker's process.
    """
    settings = of_inference(card["overrides"]) | {"spacing_mm": card["spacing_mm"]}
    jobs, files = [], {}
    for number, part in enumerate([list(images)] if client is None else parts(list(images), client)):
        folder, own = work / str(number), {case: images[case] for case in part}
        log = work / f"segment{number}.log"
        do = partial(label_cts, own, weights, folder, settings, log, threads_on(client, threads))
        jobs.append(Job(f"labelling {part[0]} and {len(part) - 1} more", do))
        files |= {case: folder / f"{case}_tissues.nii.gz" for case in part}
    _, failed = perform(jobs, client)
    if failed:
        raise RunError(next(iter(failed.values())))
    return Answers(files)


def dice(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the Dice of masks, pooled over pairs.

    Example:
        >>> dice([(np.array([True, True]), np.array([True, False])), (np.array([True]), np.array([True]))])
        0.8
    """
    common = sum(int((a & b).sum()) for a, b in pairs)
    return 2 * common / sum(int(a.sum() + b.sum()) for a, b in pairs)
