"""``python -m tools attack``: hostile files through the commands that read CTs; the table of what became of them."""

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools.attack import files, series
from tools.attack.trial import FINDINGS, Commands, Outcome
from tools.flags import check_numbers
from tools.io.files import RunError
from tools.io.markdown import MarkedPage, counts_table
from tools.io.volume import case_name
from tools.phantom.phantom import describe_patient, draw_patient

BEGIN, END = "<!-- attack -->", "<!-- end of attack -->"
SIZE = (72, 72, 12)
OF_CT = ("dataset", "segment", "bundle", "paint", "quantify")
OF_MAP = ("dataset", "paint", "quantify")
COLUMNS = ("right", "refused", "other", *FINDINGS)


def attack(page: Path, seed: int = 0, trials: int = 2000) -> None:
    """Send mutated NIfTI and DICOM files through dataset, segment, the bundle's inference, paint and quantify.

    Each trial damages a drawn patient's CT, map or series in one way and runs one command on it, in this process. It
    must end with the answer of the undamaged case, or with one sentence that names the file, and no output. The table
    goes between the marks in the page, or makes up a new one.

    Args:
        page: Markdown page, for example docs/reliability.md.
        seed: Seed for all random draws.
        trials: Number of trials.

    Raises:
        InputError: if a number is too small, or the page has one mark without the other.
        RunError: if a trial ended in another way; each is printed.
    """
    check_numbers({"trials": trials})
    marked = MarkedPage(page, (BEGIN, END), "Reliability")
    counts, findings = campaign(seed, trials)
    command = f"python -m tools attack --page {marked.shown} --seed {seed} --trials {trials}"
    marked.write(f"Made by `{command}`.\n\n{outcomes(counts)}")
    if findings:
        raise RunError(f"{len(findings)} of {trials} trials ended as none may:\n  " + "\n  ".join(findings))
    print(f"wrote {page}: {trials} trials, no finding")


def kinds() -> list[tuple[str, files.Attack]]:
    """Return every kind of damage with what is damaged: ``CT``, ``map`` or ``series``."""
    found = [("CT", one) for one in files.CT_AND_MAP + files.CT_ALONE]
    found += [("map", one) for one in files.CT_AND_MAP + files.MAP_ALONE]
    return found + [("series", one) for one in series.SERIES]


def campaign(seed: int, trials: int) -> tuple[dict[tuple[str, str], Counter], list[str]]:
    """Return what became of how many trials, per kind of damage, and a line per trial that ended as none may."""
    hu, label, _ = draw_patient(describe_patient(0, 0), 0, SIZE)
    affine = np.diag([-1.4, -1.4, 8.0, 1.0])  # a small chest, since the synthesizer knows no larger voxels
    counts: dict[tuple[str, str], Counter] = {(what, one.name): Counter() for what, one in kinds()}
    findings = []
    every = kinds()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        other = draw_patient(describe_patient(0, 1), 0, SIZE)[:2]  # dataset wants two patients
        good = tuple(files.write(array, affine, root / kind) for array, kind in zip(other, ("good", "good_map")))
        commands = Commands(root)
        for command in OF_CT:
            outcome = _trial(commands, root / "base", command, "CT", BASE, (hu, label, affine), good, 0)
            if outcome.kind != "right":
                raise RunError(f"{command} does not take the undamaged case: {outcome.told}")
        for number in tqdm(range(trials), desc="attacking", unit="trial", disable=None):
            what, one = every[number % len(every)]
            able = OF_MAP if what == "map" else OF_CT
            command = able[number // len(every) % len(able)]
            outcome = _trial(commands, root / "trial", command, what, one, (hu, label, affine), good, (seed, number))
            counts[what, one.name][outcome.kind] += 1
            line = f"trial {number}, {command}, {what}, {one.name}: {outcome.kind}: {outcome.told}"
            if outcome.kind in FINDINGS:
                findings.append(line)
            if outcome.kind in (*FINDINGS, "other"):
                print(line, file=sys.stderr)
    return counts, findings


BASE = files.Attack("nothing", lambda rng, array, affine, path: files.write(array, affine, path), True)


def _trial(commands: Commands, folder: Path, command: str, what: str, one, case, good, seed) -> Outcome:
    """Damage a case in a new folder and run a command on it."""
    shutil.rmtree(folder, ignore_errors=True)
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True), labels.mkdir()
    hu, label, affine = case
    rng = np.random.default_rng(seed)
    if what == "map":
        image = files.write(hu, affine, images / "case")
        map_ = one.make(rng, label, affine, labels / "case")
    else:
        image = one.make(rng, hu, affine, images / "case")
        map_ = labels / f"{image.name if what == 'series' else case_name(image)}.nii.gz"
        nib.save(files.whole(label, affine), map_)
    try:
        return commands.run(command, image, map_, good, one)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def outcomes(counts: dict[tuple[str, str], Counter]) -> str:
    """Return the table of damage, trials and what became of them."""
    columns = [column for column in COLUMNS if column in COLUMNS[:3] or any(one[column] for one in counts.values())]
    return counts_table(["file", "damage"], counts, columns)
