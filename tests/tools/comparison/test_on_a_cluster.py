"""A comparison on two workers, one of which is killed in mid-run, beside the same in one process."""

import subprocess
import sys

import dask
import pytest

from tools.attack.jobs import content
from tools.comparison.compare import compare
from tools.comparison.run import Run
from tools.io.files import InputError, held

pytestmark = pytest.mark.slow


def test_with_a_worker_killed_in_mid_run_the_results_are_those_of_one_process(datalist, standin, tmp_path, monkeypatch):
    given = {"arms": "real,cbmat,cbmat_filter", "seeds": (0, 1), "iterations": 1}
    compare(datalist, tmp_path / "a/out", **given)
    doomed = tmp_path / "doomed"
    doomed.write_text("fold1/seed0/cbmat")
    monkeypatch.setenv("DOOMED", str(doomed))
    with dask.config.set({"distributed.worker.preload": ["cluster_jobs"]}):
        compare(datalist, tmp_path / "b/out", **given, workers=2)
    assert not doomed.exists() and not (tmp_path / "b/out/fold1/seed0/cbmat/half").exists()
    one, other = (content(tmp_path / name / "out") for name in "ab")
    assert one == other and len([name for name in one if name.endswith("result.json")]) == 12


def test_runs_wait_for_what_they_read(datalist, standin, tmp_path, monkeypatch):
    from tools.comparison import experiment

    seen = []
    monkeypatch.setattr(experiment, "perform", lambda jobs, client: (seen.append(jobs), ({}, {}))[1])
    with pytest.raises(Exception):  # noqa: B017 - nothing is made, so nothing can be gathered
        compare(datalist, tmp_path / "out", arms="real,cbmat,cbmat_filter,copy_paste,longer", folds=0, seeds=(0, 1))
    jobs = {job.title: job.after for job in seen[-1]}
    order = list(jobs)
    keys = ("real", "cbmat", "cbmat_filter", "longer")
    runs = [str(Run(0, 1.0, seed, key)) for seed in (0, 1) for key in keys]
    named = {run: next(title for title in order if title.endswith(f": {run}")) for run in runs}
    judge, other = named["fold 0, seed 0, arm real"], named["fold 0, seed 1, arm real"]
    painted = next(title for title in order if title.endswith("augment_cbmat"))
    assert order[0] == judge and judge in jobs[painted]
    assert {painted, other, named["fold 0, seed 1, arm cbmat"]} <= set(jobs[named["fold 0, seed 1, arm cbmat_filter"]])
    assert {painted, judge} <= set(jobs[named["fold 0, seed 1, arm longer"]])
    assert named["fold 0, seed 0, arm cbmat"] not in jobs[named["fold 0, seed 1, arm cbmat"]]


def test_a_second_command_on_the_same_output_is_refused(datalist, standin, tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from tools.io.files import hold; "
        "hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with held():
        compare(datalist, tmp_path / "out", arms="real", folds=0, seeds=0, iterations=1)
    other = subprocess.Popen([sys.executable, "-c", program, tmp_path / "out"], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="is being written by another process; wait for it, or end it"):
            compare(datalist, tmp_path / "out", arms="real", folds=0, seeds=(0, 1), iterations=1, workers=2)
    finally:
        other.kill()
        other.communicate()
