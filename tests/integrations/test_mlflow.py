"""A real MLflow server takes what both bundles track, and a finished comparison."""

import json
import os
import socket
import subprocess
import time
import urllib.request

import pytest

from tests.integrations.consumers import ROOT, python_of, run
from tests.tools.fakes.comparisons import comparison, real_data
from tools.bundles import BUNDLES

pytestmark = pytest.mark.mlflow

SMALL = {
    "lung_tissue_seg": {"patch_size": 32, "window_size": [32, 32], "network_channels": [4, 4, 4], "find_lung": False},
    "difflung_synthesis": {
        **{"patch_size": [32, 32, 1], "network_channels": [16, 16], "network_def#num_head_channels": 16},
        **{"patches_per_case": 2, "measured_patches": 64, "num_steps": 2},
    },
}
READ = """
import json, mlflow, sys
client = mlflow.MlflowClient()
found = []
experiment = client.get_experiment_by_name(sys.argv[1])
for run in client.search_runs(experiment.experiment_id) if experiment else ():
    files = [file.path for file in client.list_artifacts(run.info.run_id)]
    history = len(client.get_metric_history(run.info.run_id, "train_loss"))
    found.append(dict(name=run.info.run_name, status=run.info.status, metrics=run.data.metrics, params=run.data.params,
                      files=files, history=history))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server of our own, with a database and a folder for files."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{folder}/store.db", "--artifacts-destination", str(folder / "files")]
    at = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words = [python_of("mlflow").with_name("mlflow"), "server", *store, *at]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # a dozen processes that nobody asks
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder, env=environment)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).read()
            break
        except OSError:
            assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
            time.sleep(0.5)
    yield address
    process.terminate()
    process.wait(timeout=30)


def runs_of(address, experiment):
    """Return the runs of an experiment by name."""
    done = run(python_of("mlflow"), "-c", READ, experiment, MLFLOW_TRACKING_URI=address)
    found = json.loads(done.stdout)
    assert len({one["name"] for one in found}) == len(found)
    return {one["name"]: one for one in found}


@pytest.mark.parametrize("bundle", SMALL)
def test_training_and_evaluation_of_a_bundle_are_tracked(bundle, server, cohort, tmp_path):
    root = BUNDLES / bundle
    settings = SMALL[bundle] | {
        # MONAI 1.6.1 sends its config to MLflow only where output_dir is an expression
        **{"dataset_dir": str(cohort), "model_dir": str(tmp_path / "models"), "output_dir": f"$'{tmp_path}/out'"},
        **{"device": "cpu", "batch_size": 4, "max_epochs": 2, "epoch_length": 3, "val_interval": 2},
        **{"tracking": "mlflow", "experiment_name": bundle},
    }
    for name, configs in (("training", ["train.json"]), ("evaluating", ["train.json", "evaluate.json"])):
        files = [str(root / "configs" / config) for config in configs]
        words = ["--bundle_root", root, "--config_file", files[0] if len(files) == 1 else files, "--run_name", name]
        for key, value in settings.items():
            words += [f"--{key}", value]
        run(python_of("mlflow"), "-m", "monai.bundle", "run", name, *words, MLFLOW_TRACKING_URI=server)
    found = runs_of(server, bundle)
    assert set(found) == {"training", "evaluating"}
    training, evaluating = found["training"], found["evaluating"]
    assert training["status"] == evaluating["status"] == "FINISHED" and training["params"]["max_epochs"] == "2"
    assert training["history"] == 6
    key = "val_mean_dice" if bundle == "lung_tissue_seg" else "hu_wasserstein"
    assert key in training["metrics"] and key in evaluating["metrics"]
    assert len(evaluating["metrics"]) > 5
    assert any(path.startswith("config_") for path in training["files"])


def test_a_finished_comparison_is_written_run_by_run_and_only_once(server, tmp_path):
    folder = comparison(real_data(tmp_path / "data"), tmp_path / "made", ["real", "cbmat_filter"])
    for _ in range(2):
        done = run(python_of("mlflow"), "-m", "tools", "report", "--directory", folder, "--mlflow", server, cwd=ROOT)
        assert f"wrote the experiment 'comparison made' to MLflow at {server}" in done.stdout
    found = runs_of(server, "comparison made")
    results = sorted(folder.glob("fold*/seed*/*/result.json"))
    assert len(found) == len(results) + 1 and len(results) == 16
    one = found["cbmat_filter, fold 0, seed 1"]
    assert one["status"] == "FINISHED" and one["params"]["arm"] == "cbmat_filter" and "result.json" in one["files"]
    scores = json.loads((folder / "fold0/seed1/cbmat_filter/result.json").read_text())["scores"]["own"]
    dice = [patient["ground_glass"]["dice_all"] for patient in scores.values()]
    assert one["metrics"]["dice_all ground_glass"] == pytest.approx(sum(dice) / len(dice))
    verdict = found["verdict"]
    assert {"report.html", "results.csv", "summary.json", "ground_glass.png"} <= set(verdict["files"])
    assert verdict["params"]["cbmat_filter ground_glass"]
    assert "difference cbmat_filter ground_glass" in verdict["metrics"]


def test_a_server_that_does_not_answer_is_named(tmp_path):
    folder = comparison(real_data(tmp_path / "data"), tmp_path / "made", ["real", "cbmat_filter"])
    words = ["-m", "tools", "report", "--directory", folder, "--mlflow", "http://127.0.0.1:9"]
    done = run(python_of("mlflow"), *words, cwd=ROOT, check=False, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert done.returncode and "MLflow at http://127.0.0.1:9 took no runs: " in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
