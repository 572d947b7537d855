"""Jobs here and on a cluster's workers: what a dead worker, a failed job, a leak and a lost command cost; refusals."""

import threading
from functools import partial

import cluster_jobs as jobs
import psutil
import pytest

from tools.io.files import InputError
from tools.workflows import cluster as module
from tools.workflows.cluster import Job, check_cluster, check_workers, cluster, environment, parts, perform, workers_of


def many(folder):
    """Return eight jobs of which one fails and one kills its worker once; the last waits for both."""
    plain = [Job(f"plain{number}", partial(jobs.note, folder, f"plain{number}")) for number in range(5)]
    failing, killing = Job("failing", partial(jobs.fail, folder)), partial(jobs.note_and_kill, folder, "killing")
    last = Job("last", partial(jobs.note, folder, "last"), ("failing", "killing", "not there"))
    return [failing, Job("killing", killing, ("failing",)), *plain, last]


def test_without_a_cluster_jobs_are_done_here_in_their_order_and_a_failed_one_costs_itself(tmp_path, capsys):
    (tmp_path / "killed").touch()
    with cluster(1, None, tmp_path) as client:
        assert client is None and len(workers_of(client)) == 1
        found, failed = perform(many(tmp_path), client)
    assert failed == {"failing": "out of memory"} and found["last"] == "LAST"
    assert (tmp_path / "done").read_text().split() == ["killing", *(f"plain{n}" for n in range(5)), "last"]
    assert "failing FAILED: out of memory" in capsys.readouterr().out
    with pytest.raises(InputError, match="a leak"):
        perform([Job("leak", partial(jobs.leak, tmp_path)), *many(tmp_path)], None)
    assert len((tmp_path / "done").read_text().split()) == 7


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_job_which_is_begun_again_and_a_leak_ends_all(tmp_path, capfd):
    from distributed import Future

    with cluster(2, None, tmp_path) as client:
        assert listening() == {"127.0.0.1"}
        found, failed = perform(many(tmp_path), client)
        assert failed == {"failing": "out of memory"}
        assert set(found) == {job.title for job in many(tmp_path)} - {"failing"}
        assert set((tmp_path / "done").read_text().split()) == {*(f"plain{n}" for n in range(5)), "killing", "last"}
        assert [len(part) for part in parts(list(range(10)), client)] == [5, 5]
        held = [Job(f"hold{n}", partial(jobs.holding, tmp_path)) for n in range(4)]  # the folder was held by a dead one
        assert perform(held[:1], client)[0] == {"hold0": 0} and set(perform(held[1:], client)[0].values()) <= {0}
        with pytest.raises(InputError, match="a leak"):
            perform([Job("leak", partial(jobs.leak, tmp_path))], client)
        place = tmp_path / "wait"
        place.mkdir()
        given = [Job("wait", partial(jobs.wait_in_a_run, place))], client
        waiting = threading.Thread(target=perform_quietly, args=given, daemon=True)
        waiting.start()
        jobs.wait_for(place / "begun")
        client.cancel([Future(key, client) for key in list(client.futures)])
        jobs.wait_for(place / "ended", 30)  # else it would take a minute
        waiting.join(20)
    told = capfd.readouterr().out
    assert "2 workers; dashboard: http://127.0.0.1:" in told and "killing is done" in told and "last is done" in told


def listening() -> set[str]:
    """Return the addresses at which this process and those it started can be reached."""
    here = psutil.Process()
    sockets = [one for process in (here, *here.children(recursive=True)) for one in process.net_connections("inet")]
    return {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}


def perform_quietly(some, client):
    try:
        perform(some, client)
    except Exception:
        pass


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """Start a cluster as somebody else would, with two workers of which the second is not as it must be."""
    from distributed import Nanny, Scheduler, SpecCluster

    here = {"host": "127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with SpecCluster(
            workers={0: {"cls": Nanny, "options": here | {"nthreads": 1}}},
            scheduler={"cls": Scheduler, "options": here | {"dashboard": False}},
        ) as started:
            yield started


@pytest.mark.slow
def test_workers_of_a_scheduler_that_stands_are_checked_before_anything_runs(standing, tmp_path, monkeypatch):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    module.facts.cache_clear()
    address = standing.scheduler_address
    try:
        with cluster(1, address, tmp_path, [tmp_path, None]) as client:
            assert perform([Job("one", partial(jobs.note, tmp_path, "one"))], client) == ({"one": "ONE"}, {})
            worker = next(iter(workers_of(client)))
            with pytest.raises(InputError, match=f"{worker} cannot read and write {tmp_path}/gone; all machines"):
                check_workers(client, tmp_path, [tmp_path / "gone"])
            with monkeypatch.context() as patch:
                patch.setattr(module, "write_text", lambda *_: None)  # as where the folder is another one
                with pytest.raises(InputError, match=f"worker {worker} cannot read and write {tmp_path};"):
                    check_workers(client, tmp_path)
            own = module.facts()
            with monkeypatch.context() as patch:
                patch.setattr(module, "facts", lambda: own | {"torch": "9.9", "threads": "7"})
                told = f"worker {worker} has torch {own['torch']}, not 9.9, threads 1, not 7; OMP_NUM_THREADS"
                with pytest.raises(InputError, match=told.replace("+", r"\+")):
                    check_workers(client, tmp_path)
                with pytest.raises(InputError, match="has torch"):  # of a worker that came later
                    perform([Job("two", partial(jobs.note, tmp_path, "two"))], client)
        assert (tmp_path / "done").read_text() == "one\n" and not list(tmp_path.glob(".partial*"))
    finally:
        torch.set_num_threads(threads)
        module.facts.cache_clear()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", "127.0.0.1:notaport"])
def test_a_scheduler_that_cannot_be_reached_is_named(address, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_S", 1)
    with pytest.raises(InputError, match=f"scheduler {address} cannot be reached .*leave --scheduler out"):
        with cluster(1, address, tmp_path):
            pass
    with pytest.raises(InputError, match=f"scheduler {address} cannot be reached"):
        check_cluster(1, address, tmp_path / "new")
    check_cluster(1, address, tmp_path)  # an older folder may hold all that is wanted
    check_cluster(4, None, tmp_path / "new")


def test_workers_here_and_elsewhere_are_not_both_asked_for(tmp_path):
    with pytest.raises(InputError, match="--workers 2 starts workers here, --scheduler a:1 has its own; give one"):
        with cluster(2, "a:1", tmp_path):
            pass


def test_threads_that_the_user_set_stay_in_workers_side_by_side(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment(1, 2) == {"OMP_NUM_THREADS": "4"} and environment(0, 1) == {}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert environment(1, 4) == {"CUDA_VISIBLE_DEVICES": "1"} and environment(2, 4) == {"CUDA_VISIBLE_DEVICES": "0"}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environment(1, 2) == {}
