"""Jobs of SLURM by dask-jobqueue: the script it makes, and a job on a worker that a stand-in for sbatch starts."""

import importlib.util
import json
import os
from functools import partial
from pathlib import Path

import cluster_jobs
import pytest

from tools.bundles import BUNDLES
from tools.workflows import cluster as module
from tools.workflows.cluster import Job, cluster, perform

pytest.importorskip("dask_jobqueue")
pytestmark = pytest.mark.slow
SBATCH = (
    '#!/bin/sh\ncp "$1" "{folder}/script"\nnohup sh "{folder}/script" > "{folder}/log" 2>&1 < /dev/null &\necho "$!"\n'
)


@pytest.fixture
def slurm():
    spec = importlib.util.spec_from_file_location("slurm", BUNDLES.parent / "docs/cluster/slurm.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded.slurm_cluster


def test_the_script_asks_for_a_gpu_and_starts_one_worker_with_the_threads_of_the_command(slurm):
    with slurm(8, "32GB", True, "gpu", "24:00:00", "lo") as made:
        lines = made.job_script().splitlines()
    for line in ("#SBATCH -p gpu", "#SBATCH --cpus-per-task=8", "#SBATCH --gres=gpu:1", "#SBATCH -t 24:00:00",
                 f"cd {BUNDLES.parent}", "export OMP_NUM_THREADS=8", "export MKL_NUM_THREADS=8"):  # fmt: skip
        assert line in lines
    assert " -m distributed.cli.dask_worker tcp://" in lines[-1] and "--resources GPU=1" in lines[-1]
    assert " --nthreads 1 " in lines[-1] and "--nworkers" not in lines[-1]


def test_a_job_is_done_by_a_worker_that_sbatch_started(slurm, tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH.format(folder=tmp_path)), ("scancel", '#!/bin/sh\nkill "$1"\n')):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(cluster_jobs.__file__).parent))
    monkeypatch.chdir(tmp_path)
    own = module.facts()
    monkeypatch.setattr(module, "facts", lambda: own | {"threads": "1"})
    with slurm(1, "4GB", False, None, "01:00:00", "lo") as made:
        made.scale(1)
        Path("scheduler.json").write_text(json.dumps({"address": made.scheduler_address}))
        with cluster(1, "scheduler.json", tmp_path) as client:
            done = perform([Job("one", partial(cluster_jobs.note, tmp_path, "one"))], client)
    assert done == ({"one": "ONE"}, {}) and "#SBATCH --cpus-per-task=1" in (tmp_path / "script").read_text()
