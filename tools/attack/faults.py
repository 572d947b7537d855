"""``python -m tools faults``: kills, full disks and twins over long commands; the table of what became of them."""

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools.attack import disturb
from tools.attack.disturb import Bench, FindingError
from tools.attack.jobs import JOBS
from tools.flags import check_numbers, listed
from tools.io.files import InputError, RunError
from tools.io.markdown import MarkedPage, counts_table

BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"
FINDINGS = ("differs", "twice", "fails", "traceback", "mute", "orphan", "hangs")
COLUMNS = ("same", "over", *FINDINGS)
TRAININGS = ("train_segmenter", "train_synthesizer")
OF_RANKS = tuple(name for name, job in JOBS.items() if job.ranks > 1)
OF_ONE = tuple(name for name in JOBS if name not in OF_RANKS)


@dataclass(frozen=True)
class Fault:
    """Something that comes over a command.

    Attributes:
        name: What the table calls it.
        do: Starts the command and lets it happen; returns False if the command had ended before.
        jobs: The commands it can happen to.
        share: How many trials it gets beside the others.
        again: Whether the same command is run again afterwards; else that is done already, or there is no need.
    """

    name: str
    do: Callable[[Bench, disturb.Job, np.random.Generator], bool]
    jobs: tuple[str, ...] = OF_ONE
    share: int = 1
    again: bool = True


FAULTS = (
    Fault("killed", disturb.killed, share=3),
    Fault("interrupted", disturb.interrupted),
    Fault("two at once", disturb.two_at_once),
    Fault("output read-only", disturb.read_only, again=False),
    Fault("disk full", disturb.disk_full, again=False),
    Fault("a loader worker dies", disturb.worker_dies, TRAININGS),
    Fault("a rank dies", disturb.rank_dies, OF_RANKS, share=2),
)
OTHERWISE = (
    Fault("1 loader worker", disturb.otherwise({"num_workers": 1}), (*TRAININGS, "augment", "compare"), again=False),
    Fault("2 loader workers", disturb.otherwise({"num_workers": 2}), (*TRAININGS, "augment", "compare"), again=False),
    Fault("2 runs side by side", disturb.otherwise({"workers": 2}), ("compare",), again=False),
)


def faults(page: Path, seed: int = 0, rounds: int = 1, jobs: tuple | None = None, kinds: tuple | None = None) -> None:
    """Kill, interrupt, double and starve trainings, augment, compare and package; see whether they end all the same.

    Each trial runs a tiny command on drawn patients, lets a fault come over it at a moment drawn between the first
    change of its output and the last, and runs the same command again. That must end with the files of an undisturbed
    run, byte for byte where they hold neither times nor logs, with nothing done twice that was finished. Refusals are
    one sentence. A last part runs the commands with other numbers of loader workers and of runs side by side: weights,
    volumes and tables must be the same. The table goes between the marks in the page, or makes up a new one.

    A disk of its own needs the right to mount one; the two kinds that do are left out without it, and said so.

    Args:
        page: Markdown page, for example docs/reliability.md.
        seed: Seed for all random draws.
        rounds: Number of times that every fault comes over every command; kills and some others come more often.
        jobs: Some of train_segmenter, train_synthesizer, segmenter_ranks, synthesizer_ranks (two processes each, by
            torchrun), augment, compare, package; all if absent.
        kinds: Some of the faults by the table's names, separated by commas; all if absent.

    Raises:
        InputError: if there is no such job or kind, rounds is too small, the system is not Linux, or the page has one
            mark without the other.
        RunError: if a trial ended in another way; each is printed.
    """
    check_numbers({"rounds": rounds})
    if not sys.platform.startswith("linux"):
        raise InputError(f"faults watches processes as Linux shows them, and does not run on {sys.platform}")
    every = {fault.name: fault for fault in FAULTS + OTHERWISE}
    chosen = [str(name) for name in listed(kinds)] or list(every)
    named = [str(name) for name in listed(jobs)] or list(JOBS)
    for word, given, known in (("kinds", chosen, every), ("jobs", named, JOBS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(f"{word} are of {', '.join(known)}, not {unknown[0]}")
    marked = MarkedPage(page, (BEGIN, END), "Reliability")
    counts, findings = campaign(seed, rounds, named, [every[name] for name in chosen])
    command = f"python -m tools faults --page {marked.shown} --seed {seed} --rounds {rounds}"
    command += f" --jobs {','.join(named)}" * (jobs is not None)
    command += f' --kinds "{",".join(chosen)}"' * (kinds is not None)
    marked.write(f"Made by `{command}`.\n\n{outcomes(counts)}")
    total = sum(one.total() for one in counts.values())
    if findings:
        raise RunError(f"{len(findings)} of {total} trials ended as none may:\n  " + "\n  ".join(findings))
    print(f"wrote {page}: {total} trials, no finding")


def campaign(
    seed: int, rounds: int, jobs: list[str], kinds: list[Fault]
) -> tuple[dict[tuple[str, str], Counter], list[str]]:
    """Return what became of how many trials, per command and fault, and a line per trial that ended as none may."""
    counts: dict[tuple[str, str], Counter] = {}
    findings = []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        if not disturb.can_mount(Path(name) / "disk"):
            needed = (disturb.read_only, disturb.disk_full)
            left_out = [fault.name for fault in kinds if fault.do in needed]
            print(f"left out, since nothing can be mounted here: {', '.join(left_out)}", file=sys.stderr)
            kinds = [fault for fault in kinds if fault.do not in needed]
        trials = [
            (job, fault, number)
            for job in jobs
            for fault in kinds
            if job in fault.jobs
            for number in range(fault.share * rounds)
        ]
        for job, fault, number in tqdm(trials, desc="disturbing", unit="trial", disable=None):
            kind, told = trial(bench, job, fault, np.random.default_rng([seed, *fault.name.encode(), number]))
            counts.setdefault((job, fault.name), Counter())[kind] += 1
            line = f"{job}, {fault.name}, trial {number}: {kind}: {told}"
            if kind in FINDINGS:
                findings.append(line)
            print(line, file=sys.stderr, flush=True)
    return counts, findings


def trial(bench: Bench, job: str, fault: Fault, rng: np.random.Generator) -> tuple[str, str]:
    """Let a fault come over a command; return same, over (it came too late) or a finding, and what was told."""
    try:
        bench.undisturbed(JOBS[job])
        happened = fault.do(bench, JOBS[job], rng)
        if fault.again:
            bench.again(JOBS[job])
        return ("same" if happened else "over"), ""
    except FindingError as error:
        return error.kind, str(error)
    except subprocess.TimeoutExpired as error:
        return "hangs", f"more than {error.timeout:.0f} s"
    finally:
        bench.clear()


def outcomes(counts: dict[tuple[str, str], Counter]) -> str:
    """Return the table of commands, faults, trials and what became of them."""
    columns = [column for column in COLUMNS if column in COLUMNS[:2] or any(one[column] for one in counts.values())]
    return counts_table(["command", "fault"], counts, columns)
