"""A batch of cases, of which a bad one does not cost the others; and errors in one sentence.

Both bundles have this file, letter by letter, since neither may read from the other.
"""

import ctypes
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose

from .volumes import check_file, first_line

CAUSES = re.compile(
    r"\n\n(?:The above exception was the direct cause|During handling of the above exception).*\n\n|"
    r"\n?Original Traceback \(most recent call last\):\n"
)
LOGGERS = (
    "monai.handlers.StatsHandler",
    *(f"ignite.engine.engine.Supervised{kind}" for kind in ("Trainer", "Evaluator")),
)
WORKER = re.compile(r"DataLoader worker \(pid.*(killed by signal|exited unexpectedly)")
LOST = re.compile(r"^Dist\w*Error: |gloo/transport/")  # what torch says where a process of several has ended
OWN = re.escape(str(Path(__file__).parent))
RAISED = re.compile(rf'  File "{OWN}/[^"]+", line \d+, in .*\n    raise .*\n(?:    .*\n)*(?:[\w.]+: )?([\s\S]+)$')


def sentence_of(error: BaseException) -> str | None:
    """Return the sentence that this bundle raised at the beginning of a chain of errors, or None if it raised none.

    A file that is missing or cannot be written tells itself in a sentence too, and so do Ctrl-C and a loader's worker
    or another process of the training that was killed.
    """
    for one in _chain(error):
        if isinstance(one, KeyboardInterrupt):
            return "interrupted; a training goes on from what it saved last with --resume True"
        if WORKER.search(str(one)):
            return (
                "a process that loads cases was killed, most often for want of memory; a training goes on with "
                "--resume True, perhaps with fewer num_workers"
            )
        if LOST.search(f"{type(one).__name__}: {one}"):
            told = re.sub(r"^\[\S+\] ", "", first_line(one)).partition(". ")[0]
            return f"another process of this run has ended ({told}); a training goes on with --resume True"
    for part in CAUSES.split("".join(traceback.format_exception(error))):
        last = part.rfind('  File "')
        raised = RAISED.match(part[last:]) if last >= 0 else None
        if raised:
            return raised[1].strip()
    first = _chain(error)[-1]
    if not isinstance(first, OSError) or not first.strerror:
        return None
    return f"{first.filename or 'a result cannot be written'}: {first.strerror}"


def cause_of(error: BaseException) -> str:
    """Return what began a chain of errors, in a sentence."""
    return sentence_of(error) or first_line(_chain(error)[-1])


def _chain(error: BaseException) -> list[BaseException]:
    """Return a chain of errors, the one that began it last."""
    chain = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    return chain


def prepare_process() -> None:
    """Have this process end with one sentence where an error is this bundle's own, and with the torchrun that began it.

    A sentence stands instead of tracebacks. A torchrun that is killed takes its processes along where the system is
    Linux. It begins a run: MONAI finds the scripts of a bundle from there on, not yet in `initialize`.
    """
    if sys.platform.startswith("linux") and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    before = sys.excepthook
    if getattr(before, "says", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace) -> None:
        sentence = sentence_of(error)
        if sentence is None:
            before(kind, error, trace)
        else:
            print(f"Error: {sentence}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # threads that still load cases would end the process by a signal

    hook.says = True
    sys.excepthook = hook
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Keep a log's record of our own error to its line; the error itself ends the process with its sentence."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and sentence_of(error):
        record.exc_info = None
    told, traceback, _ = record.getMessage().partition("Original Traceback")  # of a loader's worker
    if traceback:
        record.msg, record.args = told.strip(), None
    return True


class CaseCompose(Compose):
    """A Compose whose errors name the case: what a reader says of a damaged file does not."""

    def __call__(self, input_, *args, **kwargs):
        """Return what the transforms make of an item."""
        try:
            return super().__call__(input_, *args, **kwargs)
        except Exception as error:
            if sentence_of(error) or not isinstance(input_, Mapping):
                raise
            raise ValueError(f"{case_of(input_)} cannot be used: {cause_of(error)}") from error


def case_of(item: Mapping) -> str:
    """Return the files of an item, for a message."""
    return " with ".join(str(item[key]) for key in ("image", "label", "target") if isinstance(item.get(key), str))


class CaseDataset(Dataset):
    """A Dataset that gives the reason instead of an item where a case cannot be used.

    The headers of all files are looked at when it is made, so that what is wrong is known before the work begins.

    Args:
        data: Items whose values under ``image``, ``label`` and ``target`` are files.
        transform: Transforms of an item.
        output_dir: Folder that the results go to; it must not hold one of the files.

    Raises:
        ValueError: If results would lie among the files, where the next run would take them for CTs.
    """

    def __init__(self, data: Sequence[dict], transform: Callable, output_dir: str | None = None) -> None:
        super().__init__(data, transform)
        self.failed: dict[int, str] = {}
        for index, item in enumerate(data):
            for key in ("image", "label", "target"):
                if key not in item or index in self.failed:
                    continue
                if output_dir is not None and Path(item[key]).parent.resolve() == Path(output_dir).resolve():
                    raise ValueError(f"output_dir {output_dir} holds {item[key]}; name a folder of its own for results")
                try:
                    check_file(item[key], ct=key == "image", like=None if key == "image" else item["image"])
                except ValueError as error:
                    self.failed[index] = str(error)
        for sentence in self.failed.values():
            print(f"cannot be used: {sentence}", file=sys.stderr)

    def __getitem__(self, index: int) -> dict:
        """Return an item, or ``case`` and ``failure``, the file and the reason."""
        case = str(self.data[index]["image"])
        if index in self.failed:
            return {"case": case, "failure": self.failed[index]}
        try:
            return super().__getitem__(index)
        except Exception as error:  # of readers and transforms, each its own
            sentence = sentence_of(error)
            return {"case": case, "failure": sentence or f"{case} cannot be used: {cause_of(error)}"}


class CaseEvaluator(SupervisedEvaluator):
    """A SupervisedEvaluator that goes on behind a case that fails, and says at the end what it did.

    Args:
        verb: What it does to a case, such as labelled.
        passed_over: What else lies in the folder, with the reason; see :func:`scripts.volumes.list_volumes`.
    """

    def __init__(self, *args, verb: str = "done", passed_over: Mapping[str, str] | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.verb, self.passed_over = verb, dict(passed_over or {})
        self.done, self.failures = 0, []

    def run(self, *args, **kwargs) -> None:
        """Run from the first case."""
        self.done, self.failures = 0, []
        super().run(*args, **kwargs)

    def _iteration(self, engine, batchdata: dict) -> dict:
        if "failure" in batchdata:
            self.failures += batchdata["failure"]
            return {}
        try:
            found = super()._iteration(engine, batchdata)
            self.done += 1
            return found
        except Exception as error:  # of the network, of memory, of the disk
            sentence = sentence_of(error)
            name = batchdata["image"].meta.get("filename_or_obj", "a case") if sentence is None else ""
            name = name[0] if isinstance(name, list) else name
            self.failures.append(sentence or f"{name} failed: {cause_of(error)}")
            return {}

    def report(self) -> None:
        """Print how many cases are done and what was passed over.

        Raises:
            ValueError: If a case failed, with the reasons.
        """
        passed = "; ".join(f"{name} ({reason})" for name, reason in self.passed_over.items())
        others = f", passed over {len(self.passed_over)}: {passed}" if passed else ""
        failed = f", failed {len(self.failures)}" if self.failures else ""
        print(f"{self.verb} {self.done}{failed}{others}", flush=True)
        if self.failures:
            count = self.done + len(self.failures)
            reasons = "".join(f"\n  {sentence}" for sentence in self.failures)
            raise ValueError(f"{len(self.failures)} of {count} cases could not be {self.verb}:{reasons}")
