"""Workers as jobs of SLURM, for ``--scheduler scheduler.json``; run it on a login node, in the repository's folder.

    python docs/cluster/slurm.py --workers 8 --cores 8 --memory 32GB --gpu --queue QUEUE

It needs ``pip install dask-jobqueue==0.9.0``. It runs until it is interrupted, and ends its jobs then.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

from dask_jobqueue import SLURMCluster

REPOSITORY = Path(__file__).resolve().parents[2]


def slurm_cluster(
    cores: int, memory: str, gpu: bool, queue: str | None, walltime: str, interface: str | None
) -> SLURMCluster:
    """Return a cluster without workers yet: one process, one job of the command at a time, in each job of SLURM."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # Dask would make the last two 1
    return SLURMCluster(
        cores=1,
        processes=1,
        job_cpu=cores,
        memory=memory,
        queue=queue,
        walltime=walltime,
        interface=interface,
        python=sys.executable,
        job_extra_directives=["--gres=gpu:1"] * gpu,
        worker_extra_args=["--resources", "GPU=1"] * gpu,
        job_script_prologue=[f"cd {REPOSITORY}", *(f"export {name}={cores}" for name in names)],
        log_directory="slurm_logs",
    )


def main() -> None:
    """Start the cluster, write its address, and wait."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--cores", type=int, default=8, help="threads of each job, OMP_NUM_THREADS of the command too")
    parser.add_argument("--memory", default="32GB")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--queue")
    parser.add_argument("--walltime", default="24:00:00")
    parser.add_argument("--interface", help="network between the nodes, such as ib0")
    parser.add_argument("--file", type=Path, default=Path("scheduler.json"))
    parser.add_argument("--show", action="store_true", help="print the job script and end")
    given = parser.parse_args()
    wanted = given.cores, given.memory, given.gpu, given.queue, given.walltime, given.interface
    with slurm_cluster(*wanted) as cluster:
        print(cluster.job_script(), flush=True)
        if given.show:
            return
        given.file.write_text(json.dumps({"address": cluster.scheduler_address}), encoding="utf-8")
        cluster.scale(given.workers)
        print(f"wrote {given.file}; dashboard: {cluster.dashboard_link}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
