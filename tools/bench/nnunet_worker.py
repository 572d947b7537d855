"""Plans, trains and applies nnU-Net v2 where that is installed: ``PYTHON nnunet_worker.py JOB.json``.

It imports nothing of this project, since nnU-Net's environment does not hold it.
"""

import json
import os
import sys
import time
from pathlib import Path

DATASET, CONFIGURATION = "Dataset001_lung", "2d"
STEPS_PER_EPOCH = 25  # the learning rate falls once per epoch
GPU_GB, SHRINK = 8.0, 0.8  # the memory for which nnU-Net plans by default
SMALLEST_PATCH = 32  # pixels; planning for less takes ever longer, and ends in an overflow


def prepare(folder: Path, voxels_per_step: int | None) -> dict:
    """Plan and preprocess as nnU-Net does, for a memory at which a step sees about as many voxels as is allowed.

    nnU-Net adapts the patch, then the batch to the memory, and a batch has two patches at least. None leaves the plan
    as it is. Returned is the plan for 2D; ValueError if so few voxels are allowed that no patch can be planned.
    """
    least = 2 * SMALLEST_PATCH**2
    if voxels_per_step is not None and voxels_per_step < least:
        raise ValueError(f"a step of {voxels_per_step} voxels is too small for nnU-Net; allow {least} at least")
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    extract_fingerprints([1], num_processes=2, check_dataset_integrity=True, show_progress_bar=False)
    path, memory = folder / "preprocessed" / DATASET / "nnUNetPlans.json", GPU_GB
    while True:
        plan_experiments([1], gpu_memory_target_in_gb=memory)
        plans = json.loads(path.read_text(encoding="utf-8"))
        plan = plans["configurations"][CONFIGURATION]
        area = plan["patch_size"][0] * plan["patch_size"][1]
        if voxels_per_step is None or 2 * area <= voxels_per_step:
            break
        memory *= SHRINK
    if voxels_per_step is not None:
        plan["batch_size"] = max(2, round(voxels_per_step / area))
        path.write_text(json.dumps(plans), encoding="utf-8")
    preprocess([1], configurations=[CONFIGURATION], num_processes=[2], show_progress_bar=False)
    return {key: plan[key] for key in ("patch_size", "batch_size", "spacing", "architecture")}


def train(job: dict) -> None:
    """Train one fold for a number of steps, and label its held-out cases, mirrored, as nnU-Net does."""
    import numpy as np
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])
    trainer = get_trainer_from_args(DATASET, CONFIGURATION, job["fold"], device=torch.device(job["device"]))
    trainer.num_iterations_per_epoch = min(STEPS_PER_EPOCH, job["steps"])
    trainer.num_epochs = job["steps"] // trainer.num_iterations_per_epoch
    trainer.num_val_iterations_per_epoch = 1
    # nnU-Net computes with 16 bits on a GPU; the same here, where the processor has them
    reduced = job["device"] == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with torch.autocast("cpu", torch.bfloat16, enabled=reduced, cache_enabled=False):
        trainer.initialize()
        trainer.network.to(memory_format=torch.channels_last)
        trainer.run_training()
        trainer.perform_actual_validation()
    Path(trainer.output_folder, "validation").rename(Path(job["directory"], "labels"))


def predict(job: dict) -> dict:
    """Label some slices with nnU-Net's predictor and random weights; return the seconds it took from array to array."""
    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(DATASET, CONFIGURATION, 0, device=torch.device(job["device"]))
    trainer.initialize()
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(device=trainer.device, use_mirroring=True, allow_tqdm=False)
    plans, weights = trainer.plans_manager, [trainer.network.state_dict()]
    described = (plans, trainer.configuration_manager, weights, trainer.dataset_json, "nnUNetTrainer", (0, 1))
    predictor.manual_initialization(trainer.network, *described)
    slices = np.load(job["slices"])
    start = time.perf_counter()
    predictor.predict_single_npy_array(slices[None], {"spacing": job["spacing_mm"]})
    return {"seconds": time.perf_counter() - start, "slices": len(slices)}


def main(path: str) -> None:
    """Do the job that a JSON file describes."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    folder = Path(job["folder"])
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ |= {"nnUNet_def_n_proc": "2", "nnUNet_compile": "false"}
    done = {}
    if job["task"] == "prepare":
        done = prepare(folder, job["voxels_per_step"])
    elif job["task"] == "predict":
        done = predict(job)
    else:
        os.environ["nnUNet_n_proc_DA"] = "0"  # patches are cut in the process itself
        train(job)
    Path(job["directory"], "done.json").write_text(json.dumps(done), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
