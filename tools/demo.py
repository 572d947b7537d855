"""``python -m tools demo``: the whole chain on drawn patients, small enough for two cores and 8 GB of memory."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from tools.bundles import BUNDLES
from tools.comparison.compare import compare
from tools.data.dataset import dataset
from tools.io.files import open_run
from tools.painting.paint import paint
from tools.phantom.phantom import phantom
from tools.report.report import report
from tools.segmenting.segment import segment

TESTED_FOLD = 0
SAMPLING_STEPS = 8


@dataclasses.dataclass(frozen=True)
class Setting:
    """Every number of a demo. A study on real patients uses the defaults of the commands instead.

    Attributes:
        patients: Number of drawn patients.
        size: Voxels of each.
        arms: Arms of the comparison.
        seeds: Segmenters per arm.
        iterations: Optimizer steps of each.
        segmenter: Config ids of the segmenter.
        new_cases: Most cases to paint.
        synthesizer: Config ids of the synthesizer's training; None paints with the weights of the bundle.
        folds: Number of folds, of which one is tested; a verdict on the same patients needs three.
    """

    patients: int
    size: tuple[int, int, int]
    arms: tuple[str, ...]
    seeds: int
    iterations: int
    segmenter: dict
    new_cases: int
    synthesizer: dict | None
    folds: int = 3


SHORT = Setting(
    patients=16,
    size=(240, 240, 8),  # voxels of the size that the weights know
    arms=("real", "copy_paste", "cbmat"),
    seeds=1,
    iterations=150,
    segmenter={"batch_size": 8, "patch_size": 96},
    new_cases=8,
    synthesizer=None,
)
LONG = Setting(
    patients=40,
    size=(160, 160, 16),
    arms=("real", "oversampled", "copy_paste", "cbmat_filter"),
    seeds=2,
    iterations=300,
    segmenter={"batch_size": 8, "patch_size": 96},
    new_cases=16,
    synthesizer={
        "max_epochs": 1,
        "epoch_length": 1000,
        "batch_size": 2,
        "ema_momentum": 0.005,
        "warmup_steps": 30,
        "marginal_probability": 0.0,  # augment tells the tissues of every map
    },
)


def demo(output: Path = Path("demo"), seed: int = 0, long: bool = False) -> None:
    """Show the whole chain on patients who do not exist: segment, paint, compare, report; minutes on two cores.

    A drawn CT is segmented and painted with the weights of the bundles. Then segmenters are trained on real cases alone
    (drawn ones here), with copy-paste and with painted cases, and tested on other patients. Interrupted, it goes on
    when started again. The same seed gives the same figures on the same machine.

    Args:
        output: Folder to create; it receives phantom/, segmented/, painted/, dataset/, comparison/ and report.html.
        seed: Seed for the patients, the folds, the painting and the segmenters, 0 or more.
        long: Whether to train a synthesizer on the drawn patients too, with more of them, of arms and of seeds.

    Raises:
        InputError: if the folder holds something else, or a demo with another seed or setting.
    """
    output, setting = Path(output), LONG if long else SHORT
    told = dataclasses.asdict(setting)
    open_run(output, {"command": "demo", "seed": seed, "sampling_steps": SAMPLING_STEPS} | told)
    drawn, divided, compared, page = (output / name for name in ("phantom", "dataset", "comparison", "report.html"))
    weights = BUNDLES / "difflung_synthesis/models/model.pt"

    def draw() -> None:
        if not drawn.is_dir():
            phantom(output=drawn, patients=setting.patients, seed=seed, size=setting.size)

    def first_ct() -> Path:
        return min((drawn / "images").iterdir())

    def segment_one() -> None:
        if not (output / "segmented").is_dir():
            segment(first_ct(), output=output / "segmented")

    def paint_one() -> None:
        if not (output / "painted").is_dir():
            paint(first_ct(), output=output / "painted", tissue="ground_glass", volume_ml=60, place="right", seed=seed)

    def divide() -> None:
        if not divided.is_dir():
            dataset(
                images=drawn / "images", labels=drawn / "labels", output=divided, patients=drawn / "patients.csv",
                folds=setting.folds, seed=seed,
            )  # fmt: skip

    def paint_and_compare() -> None:
        compare(
            datalist=divided / "datalist.json", output=compared, arms=setting.arms, folds=(TESTED_FOLD,),
            seeds=tuple(range(seed, seed + setting.seeds)), iterations=setting.iterations, steps=SAMPLING_STEPS,
            max_cases=setting.new_cases, augmentation_seed=seed, overrides=setting.segmenter,
            synthesis_overrides=setting.synthesizer, synthesizer=None if setting.synthesizer else weights,
        )  # fmt: skip

    training = "train the synthesizer, paint" if setting.synthesizer else "paint"
    stages: list[tuple[str, Callable[[], None]]] = [
        (f"phantom: {setting.patients} patients who do not exist", draw),
        ("segment: what is in the first one's lungs", segment_one),
        ("paint: ground glass into the same CT", paint_one),
        (f"dataset: check them and divide them into {setting.folds} folds", divide),
        (f"compare: {len(setting.arms) * setting.seeds} segmenters, {training} in between", paint_and_compare),
        ("report: one page with the answer", lambda: report(directory=compared, output=page)),
    ]
    elapsed = []
    for number, (title, stage) in enumerate(stages, 1):
        print(f"\n[{number}/{len(stages)}] {title}", flush=True)
        start = time.monotonic()
        stage()
        elapsed.append(time.monotonic() - start)
        print(f"[{number}/{len(stages)}] took {minutes(elapsed[-1])}", flush=True)
    print(
        f"\nthe demo took {minutes(sum(elapsed))}; open {page.absolute()},\n"
        f"{output.absolute() / 'segmented/segmentation.html'} and the picture in {output.absolute() / 'painted'}"
    )


def minutes(seconds: float) -> str:
    """Return a duration as minutes and seconds.

    Example:
        >>> minutes(75.4), minutes(0.2)
        ('1:15 min', '0:00 min')
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
