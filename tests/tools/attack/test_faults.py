"""Faults over commands: good commands end all the same, bad ones are found out, and a real training is killed once."""

import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tools.attack import disturb
from tools.attack.disturb import Bench
from tools.attack.faults import FAULTS, OTHERWISE, Fault, campaign, faults, outcomes, trial
from tools.attack.jobs import JOBS, Job, content
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


def stand_in(script: str) -> Job:
    def words(datalist: Path, output: Path, different: dict) -> list[str]:
        program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(script)}"
        return ["-c", program, str(output), *map(str, different)]

    return Job("stand-in", words, ("*.csv",))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(disturb, "draw_cohort", lambda folder: folder / "datalist.json")
    return Bench(tmp_path)


def one(bench, script, fault, number=0, monkeypatch=None):
    monkeypatch.setitem(JOBS, "stand-in", stand_in(script))
    return trial(bench, "stand-in", fault, np.random.default_rng([7, number]))


@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if fault.do is not disturb.worker_dies], ids=lambda one: one.name
)
def test_a_command_that_goes_on_ends_the_same_after_every_fault(bench, monkeypatch, fault, tmp_path):
    if fault.do in (disturb.read_only, disturb.disk_full) and not disturb.can_mount(tmp_path / "disk"):
        pytest.skip("no right to mount")
    assert one(bench, GOOD, fault, monkeypatch=monkeypatch) in (("same", ""), ("over", ""))
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("kind", "do"), [
    ("twice", disturb.killed), ("orphan", disturb.killed), ("traceback", disturb.interrupted),
    ("mute", disturb.interrupted), ("differs", disturb.killed),
])  # fmt: skip
def test_a_command_that_does_not_is_found_out(bench, monkeypatch, kind, do):
    found = [one(bench, SPOILED[kind], Fault("one", do), number, monkeypatch)[0] for number in range(3)]
    assert kind in found


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
