"""Faults over commands: good commands end all the same, bad ones are found out, and a real training is killed once."""

import signal
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

from tools.attack import disturb
from tools.attack.disturb import Bench, FindingError
from tools.attack.faults import FAULTS, OTHERWISE, Fault, campaign, faults, outcomes, trial
from tools.attack.jobs import JOBS, TORCHRUN, Job, content
from tools.io.files import InputError, RunError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes as Linux shows them")
ROOT = Path(__file__).resolve().parents[3]

# Writes eight files, one after the other, as a command of the tools should; each later line may spoil it.
GOOD = """
import signal, subprocess, sys, time
from pathlib import Path
from tools.io.files import InputError, open_run, write_text
output, different = Path(sys.argv[1]), sys.argv[2:]
try:
    open_run(output, {"command": "stand-in"})
    for number in range(8):
        if not (output / f"{number}.csv").is_file():
            time.sleep(0.05)
            write_text(output / f"{number}.csv", f"name,seconds\\n{number},{time.time()}\\n" + "x,1\\n" * 2000)
except (InputError, OSError, KeyboardInterrupt) as error:
    print(f"stand-in: {error or 'interrupted'}", file=sys.stderr)
    sys.exit(1)
"""
SPOILED = {
    "twice": GOOD.replace('if not (output / f"{number}.csv").is_file():', "if True:"),
    "orphan": GOOD.replace("try:", 'subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])\ntry:', 1),
    "traceback": GOOD.replace(", OSError, KeyboardInterrupt", ""),
    "mute": GOOD.replace("print(f\"stand-in: {error or 'interrupted'}\", file=sys.stderr)", "pass"),
    "differs": GOOD.replace("f\"name,seconds\\n{number},{time.time()}", "f\"name,time\\n{number},{time.time()}"),
}  # fmt: skip


# Two processes that add up numbers; each writes a file per round, and a survivor says what became of the other.
RANKS = """
import os, sys, time
from pathlib import Path
import torch
output = Path(sys.argv[1])
output.mkdir(exist_ok=True)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
for number in range(8):
    try:
        torch.distributed.all_reduce(torch.ones(1))
    except RuntimeError:
        print("Error: another process of this run has ended", file=sys.stderr, flush=True)
        os._exit(1)
    time.sleep(0.2)
    (output / f"{number}_{rank}.csv").write_text(f"name,value\\n{number},{rank}\\n")
"""
TORCHRUN_TOLD = (
    'Traceback (most recent call last):\n  File "<frozen runpy>", line 198, in _run_module_as_main\n'
    '  File "/x/torch/distributed/run.py", line 9, in <module>\n    main()\nRoot Cause (first observed failure):\n'
    "  exitcode  : -9 (pid: 7)  (SIGKILL)\n  traceback : Signal 9 (SIGKILL) received by PID 7\n"
)


def stand_in(script: str, ranks: int = 1) -> Job:
    def words(datalist: Path, output: Path, different: dict) -> list[str]:
        program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(script)}"
        if ranks == 1:
            return ["-c", program, str(output), *map(str, different)]
        (output.parent / "ranks.py").write_text(program, encoding="utf-8")
        return [*TORCHRUN, str(ranks), str(output.parent / "ranks.py"), str(output)]

    return Job("stand-in", words, ("*.csv",) if ranks == 1 else (), own=ranks == 1, ranks=ranks)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(disturb, "draw_cohort", lambda folder: folder / "datalist.json")
    return Bench(tmp_path)


def one(bench, script, fault, number=0, monkeypatch=None):
    monkeypatch.setitem(JOBS, "stand-in", stand_in(script))
    return trial(bench, "stand-in", fault, np.random.default_rng([7, number]))


@pytest.mark.parametrize(
    "fault",
    [fault for fault in FAULTS if fault.do not in (disturb.worker_dies, disturb.rank_dies)],
    ids=lambda one: one.name,
)
def test_a_command_that_goes_on_ends_the_same_after_every_fault(bench, monkeypatch, fault, tmp_path):
    if fault.do in (disturb.read_only, disturb.disk_full) and not disturb.can_mount(tmp_path / "disk"):
        pytest.skip("no right to mount")
    assert one(bench, GOOD, fault, monkeypatch=monkeypatch) in (("same", ""), ("over", ""))
    assert not list(tmp_path.glob("out*"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "do"), [
    ("twice", disturb.killed), ("orphan", disturb.killed), ("traceback", disturb.interrupted),
    ("mute", disturb.interrupted), ("differs", disturb.killed),
])  # fmt: skip
def test_a_command_that_does_not_is_found_out(bench, monkeypatch, kind, do):
    found = [one(bench, SPOILED[kind], Fault("one", do), number, monkeypatch)[0] for number in range(3)]
    assert kind in found


@pytest.mark.slow
def test_a_rank_that_dies_is_told_of_and_the_same_again_ends_the_same(bench, monkeypatch):
    monkeypatch.setitem(JOBS, "stand-in", stand_in(RANKS, 2))
    found = trial(bench, "stand-in", Fault("a rank dies", disturb.rank_dies), np.random.default_rng(7))
    assert found in (("same", ""), ("over", ""))


@pytest.mark.parametrize(
    ("told", "code", "kind"),
    [
        ("Error: another process has ended\n", 1, None),
        ("", 1, None),  # torchrun was faster, and names the process that was killed
        ("[rank0]: Traceback (most recent call last):\n[rank0]: RuntimeError: gloo\n", 1, "traceback"),
        ("Error: another process has ended\n", 0, "mute"),
    ],
)
def test_what_torchrun_adds_is_told_apart_from_what_the_ranks_say(bench, told, code, kind):
    running = types.SimpleNamespace(wait=lambda: code, told=told + TORCHRUN_TOLD)
    if kind is None:
        bench.refused(stand_in(RANKS, 2), running, by=signal.SIGKILL)
        return
    with pytest.raises(FindingError, match=kind):
        bench.refused(stand_in(RANKS, 2), running, by=signal.SIGKILL)


def test_seconds_and_logs_are_no_difference(tmp_path):
    for name, seconds in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(f'{{"scores": [{{"seconds": {seconds}, "dice": 0.5}}]}}')
        (tmp_path / name / "run.log").write_text(str(seconds))
    assert content(tmp_path / "a") == content(tmp_path / "b") != {}
    (tmp_path / "b/result.json").write_text('{"scores": [{"seconds": 1, "dice": 0.6}]}')
    assert content(tmp_path / "a") != content(tmp_path / "b")


def test_what_does_not_exist_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="jobs are of train_segmenter, .*, not training"):
        faults(tmp_path / "page.md", jobs=("training",))
    with pytest.raises(InputError, match="kinds are of killed, .*, not kill"):
        faults(tmp_path / "page.md", kinds=("kill",))
    with pytest.raises(InputError, match="rounds must be a whole number of at least 1"):
        faults(tmp_path / "page.md", rounds=0)


@pytest.mark.slow
def test_a_finding_is_in_the_table_and_ends_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(JOBS, "stand-in", stand_in(SPOILED["differs"]))
    monkeypatch.setattr("tools.attack.faults.FAULTS", (Fault("killed", disturb.killed, ("stand-in",)),))
    with pytest.raises(RunError, match="1 of 1 trials ended as none may:\n  stand-in, killed, trial 0: differs"):
        faults(tmp_path / "page.md", jobs=("stand-in",), kinds=("killed",))
    assert "| stand-in | killed | 1 | 0 | 0 | 1 |" in (tmp_path / "page.md").read_text()


@pytest.mark.slow
def test_a_training_that_is_killed_or_loaded_by_workers_ends_with_the_same_weights():
    kinds = [FAULTS[0], OTHERWISE[1]]
    assert (kinds[0].name, kinds[1].name) == ("killed", "2 loader workers")
    counts, findings = campaign(1, 1, ["train_segmenter"], [Fault("killed", disturb.killed), kinds[1]])
    assert findings == []
    assert sum(one["same"] for one in counts.values()) == 2
    assert outcomes(counts).count("\n") == 4
