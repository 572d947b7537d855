"""One hostile input through one command, in this process: how it ended, how long it took, and the memory it held."""

import contextlib
import io
import json
import re
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np

import tools.__main__ as cli
from tools.attack.files import Attack
from tools.bundles import load_script
from tools.painting.one_ct import OneCtPainter
from tools.segmenting.segmenter import Segmenter
from tools.workflows.run import read_bundle

SECONDS = 120  # after which a command hangs
MOST_MB = 1500  # more than before the trial: 2**30 voxels are refused later than the files here hold them
LINES = 4  # of a refusal, at most


class HangError(BaseException):
    """A command did not end."""


@dataclass
class Outcome:
    """How a command ended.

    Attributes:
        kind: ``right``, ``refused``, ``other`` (a success whose answer is not the undamaged one's), or a finding:
            ``traceback``, ``hang``, ``memory``, ``half`` (refused, yet output), ``mute`` (refused without the file's
            name or in too many lines), ``wrong``.
        told: What was printed, or the answer's difference.
    """

    kind: str
    told: str = ""


FINDINGS = ("traceback", "hang", "memory", "half", "mute", "wrong")


class Commands:
    """The commands under attack, their networks loaded once.

    Args:
        folder: Scratch folder.

    Attributes:
        answers: Command to its answer for the undamaged case.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segmenter, self.painter = Segmenter(device="cpu"), OneCtPainter(None, 1, "cpu", None)
        self.checkpoint = self.segmenter.weights.path
        self.answers: dict[str, object] = {}

    def words(self, command: str, image: Path, label: Path, good: tuple[Path, Path], output: Path) -> list[str]:
        """Return the command line for a case; dataset and quantify want folders, which are made."""
        if command == "segment":
            return [str(image), "--output", str(output)]
        if command == "paint":
            words = [str(image), "--labels", str(label), "--tissue", "ground_glass", "--volume_ml", "5"]
            return [*words, "--steps", "1", "--output", str(output)]
        words = ["--images", str(image.parent), "--output", str(output)]
        if command == "quantify":
            return [*words, "--tissues", str(label.parent)]
        for path, folder in zip(good, (image.parent, label.parent)):
            shutil.copy(path, folder / f"undamaged{''.join(path.suffixes)}")
        return [*words, "--labels", str(label.parent), "--folds", "2"]

    def run(self, command: str, image: Path, label: Path, good: tuple[Path, Path], one: Attack) -> Outcome:
        """Run a command on a case and judge how it ended.

        Args:
            command: Its name, or ``bundle`` for the segmenter's own inference on the CT's folder.
            image: The CT's file or folder, alone in its folder.
            label: Its map, likewise.
            good: The undamaged CT and map.
            one: The damage: whether success must give the undamaged case's answer, or there must be none.
        """
        output = self.folder / "out"
        shutil.rmtree(output, ignore_errors=True)
        before = peak_mb(reset=True)
        streams = io.StringIO(), io.StringIO()
        code: int | None = None
        try:
            with limited(SECONDS), contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
                code = self._call(command, image, label, good, output)
        except HangError:
            return Outcome("hang", f"more than {SECONDS} s")
        except BaseException:
            return Outcome("traceback", traceback.format_exc()[-1500:])
        told = streams[1].getvalue().strip()
        if peak_mb() - before > MOST_MB:
            return Outcome("memory", f"{peak_mb() - before:.0f} MB")
        if code:
            return self._refusal(told, output, image, label)
        return self._success(command, output, one)

    def _call(self, command: str, image: Path, label: Path, good: tuple[Path, Path], output: Path) -> int:
        with contextlib.ExitStack() as patched:
            patched.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            if command == "bundle":
                return self._infer(image.parent, output)
            for place, value in (
                ("tools.segmenting.segment.Segmenter", lambda *given: self.segmenter),
                ("tools.painting.paint.OneCtPainter", lambda *given: self.painter),
                *((f"tools.{module}.draw", lambda *given: b"") for module in PICTURES),
            ):
                patched.enter_context(mock.patch(place, value))
            return cli.main([command, *self.words(command, image, label, good, output)])

    def _infer(self, images: Path, output: Path) -> int:
        """Run the segmenter's bundle on a folder as ``monai.bundle run`` does, and end as its process would."""
        parser = read_bundle("lung_tissue_seg", "inference.json")
        places = {"dataset_dir": str(images), "output_dir": str(output), "checkpoint": str(self.checkpoint)}
        for name, value in (places | {"device": "cpu", "progress_bar": False}).items():
            parser[name] = value
        parser["handlers"], parser["saver::print_log"] = ["@checkpoint_loader"], False
        sentence_of = load_script("lung_tissue_seg", "batch").sentence_of
        try:
            evaluator = parser.get_parsed_content("evaluator")
            evaluator.logger.setLevel("CRITICAL")
            evaluator.run()
            evaluator.report()
        except Exception as error:
            sentence = sentence_of(error)
            if sentence is None:
                raise
            sys.stderr.seek(0), sys.stderr.truncate()  # what was told before is told again
            print(sentence, file=sys.stderr)
            return 1
        return 0

    def _refusal(self, told: str, output: Path, image: Path, label: Path) -> Outcome:
        last = re.split(r"\n(?=\w+: )", told)[-1]
        names = [path.name for path in (image, label)] + [str(path.parent) for path in (image, label)]
        if output.exists() and any(output.rglob("*.nii*")):
            return Outcome("half", f"{told}\n{sorted(output.rglob('*'))}")
        if "Traceback" in told or len(last.splitlines()) > LINES or not any(name in told for name in names):
            return Outcome("mute", told)
        return Outcome("refused", last)

    def _success(self, command: str, output: Path, one: Attack) -> Outcome:
        answer = self.answer(command, output)
        if command not in self.answers:
            self.answers[command] = answer
        if one.bad:
            return Outcome("wrong", "it should have been refused")
        if _equal(answer, self.answers[command]):
            return Outcome("right")
        told = f"{_told(answer)} instead of {_told(self.answers[command])}"
        return Outcome("wrong" if one.same else "other", told)

    def answer(self, command: str, output: Path) -> object:
        """Return what a command made of a case, without names: a map in canonical axes, or millilitres."""
        if command in ("segment", "bundle", "paint"):
            pattern = "*_painted.nii.gz" if command == "paint" else "*_tissues.nii.gz"
            (file,) = output.glob(pattern)
            return np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj)
        if command == "quantify":
            (found,) = json.loads((output / "quantification.json").read_text(encoding="utf-8"))["cases"].values()
            return np.array(
                [value for region in (found or {}).values() for value in region.values() if value is not None]
            )
        card = json.loads((output / "data_card.json").read_text(encoding="utf-8"))
        return np.array([about["voxels"] for about in card["tissues"].values()], float)


PICTURES = ("segmenting.segment", "quantify.quantify", "painting.paint")


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=2e-3, atol=1e-3)


def _told(answer: np.ndarray) -> str:
    return f"shape {answer.shape}, sum {answer.sum():.6g}"


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """End the block with HangError when it takes too long."""

    def end(*given) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak_mb(reset: bool = False) -> float:
    """Return the most memory that this process held since the last reset, in MB; what it holds, after one."""
    if reset:
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb") as stream:
            stream.write(b"5")
    with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
        return int(re.search(r"VmHWM:\s+(\d+)", stream.read())[1]) / 1024
