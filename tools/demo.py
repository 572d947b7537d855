"""``python -m tools demo``: the whole chain on drawn patients, small enough for two cores and 8 GB of memory."""

import time
from collections.abc import Callable
from pathlib import Path

from tools.comparison.compare import compare
from tools.data.dataset import dataset
from tools.io.files import open_run
from tools.phantom.phantom import phantom
from tools.report.report import report

# Every number of the small setting. A study on real patients uses the defaults of the commands instead.
PATIENTS = 40
SIZE = (160, 160, 16)  # voxels
FOLDS = 2  # one of them is tested: 20 patients, so that five or more have the rarest tissue
TESTED_FOLD = 0
ARMS = ("real", "oversampled", "copy_paste", "cbmat_filter")
SEEDS = 2  # segmenters per arm
SEGMENTER_ITERATIONS = 300
SEGMENTER_SETTINGS = {"batch_size": 8, "patch_size": 96}
NEW_CASES = 16  # at most
SAMPLING_STEPS = 8
SYNTHESIZER_SETTINGS = {
    "max_epochs": 1,
    "epoch_length": 1000,
    "batch_size": 2,
    "ema_momentum": 0.005,
    "warmup_steps": 30,
    "marginal_probability": 0.0,  # augment tells the tissues of every map
}


def demo(output: Path = Path("demo"), seed: int = 0) -> None:
    """Show the whole chain on patients who do not exist: draw, divide, paint, compare, report; minutes on two cores.

    Interrupted, it goes on when started again. The same seed gives the same figures on the same machine.

    Args:
        output: Folder to create; it receives phantom/, dataset/, comparison/ and report.html.
        seed: Seed for the patients, the folds, the painting and the segmenters, 0 or more.

    Raises:
        InputError: if the folder holds something else, or a demo with another seed or setting.
    """
    output = Path(output)
    settings = {
        "command": "demo", "seed": seed, "patients": PATIENTS, "size": SIZE, "folds": FOLDS, "tested_fold": TESTED_FOLD,
        "arms": ARMS, "seeds": SEEDS, "segmenter_iterations": SEGMENTER_ITERATIONS, "segmenter": SEGMENTER_SETTINGS,
        "new_cases": NEW_CASES, "sampling_steps": SAMPLING_STEPS, "synthesizer": SYNTHESIZER_SETTINGS,
    }  # fmt: skip
    open_run(output, settings)
    drawn, divided, compared, page = (output / name for name in ("phantom", "dataset", "comparison", "report.html"))

    def draw() -> None:
        if not drawn.is_dir():
            phantom(output=drawn, patients=PATIENTS, seed=seed, size=SIZE)

    def divide() -> None:
        if not divided.is_dir():
            dataset(
                images=drawn / "images", labels=drawn / "labels", output=divided, patients=drawn / "patients.csv",
                folds=FOLDS, seed=seed,
            )  # fmt: skip

    def paint_and_compare() -> None:
        compare(
            datalist=divided / "datalist.json", output=compared, arms=ARMS, folds=(TESTED_FOLD,),
            seeds=tuple(range(seed, seed + SEEDS)), iterations=SEGMENTER_ITERATIONS, steps=SAMPLING_STEPS,
            max_cases=NEW_CASES, augmentation_seed=seed, overrides=SEGMENTER_SETTINGS,
            synthesis_overrides=SYNTHESIZER_SETTINGS,
        )  # fmt: skip

    stages: list[tuple[str, Callable[[], None]]] = [
        (f"phantom: {PATIENTS} patients who do not exist", draw),
        (f"dataset: check them and divide them into {FOLDS} folds", divide),
        (
            f"compare: {len(ARMS) * SEEDS} segmenters, augment (train the synthesizer, paint) in between",
            paint_and_compare,
        ),
        ("report: one page with the answer", lambda: report(directory=compared, output=page)),
    ]
    elapsed = []
    for number, (title, stage) in enumerate(stages, 1):
        print(f"\n[{number}/{len(stages)}] {title}", flush=True)
        start = time.monotonic()
        stage()
        elapsed.append(time.monotonic() - start)
        print(f"[{number}/{len(stages)}] took {minutes(elapsed[-1])}", flush=True)
    print(f"\nthe demo took {minutes(sum(elapsed))}; open {page.absolute()}")


def minutes(seconds: float) -> str:
    """Return a duration as minutes and seconds.

    Example:
        >>> minutes(75.4), minutes(0.2)
        ('1:15 min', '0:00 min')
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
