"""``python -m tools weights``: weights for both bundles from normal CT, without a tissue map by a human reader."""

from pathlib import Path

import torch

from tools.bundles import BUNDLES
from tools.data.datalist import SYNTHETIC as ALWAYS_TRAINED
from tools.io.files import InputError, RunError, atomic_file, open_run, read_json, sha256, write_json
from tools.phantom.draw_into_ct import draw_into_ct
from tools.phantom.phantom import phantom
from tools.workflows.run import FINE_TUNE, run_bundle
from tools.workflows.segmenter import SEGMENTER, epochs
from tools.workflows.synthesizer import SYNTHESIZER

SEGMENTER_CONFIGS = ["train.json", "whole_slices.yaml"]
HELD_OUT = 0
PHANTOMS_HELD_OUT = 2  # so that a run that keeps no patient out has something to validate on
# The synthesizer's cases show the scanner's own picture, at many voxel sizes; published pictures are not painted.
AS_SCANNED = {"framed": 0.0, "windowed": 0.0, "surrounded": 0.0, "resampled": 0.5}
SYNTHESIS_EPOCH = 250


def weights(
    ct: Path,
    output: Path,
    bundle: str = "both",
    lung_dir: Path | None = None,
    patients: Path | None = None,
    patches: Path | None = None,
    patches_share: float = 1.0,
    keep_out: str | None = None,
    cases_per_ct: int = 20,
    phantoms: int = 10,
    steps: int = 16000,
    synthesis_steps: int = 8000,
    start: Path | None = None,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Draw disease into normal CT, train both bundles on it, and write their weights with cards of their origin.

    Writes ``lung_tissue_seg/`` and ``difflung_synthesis/``, in each ``model.pt`` (float16), ``card.json`` (every CT
    with its SHA-256, settings, steps), the drawn cases and the training. Started again with the same settings, it goes
    on. The segmenter learns from whole CTs and from pictures as they are published, and from drawn patients; the
    synthesizer from what the scanner showed, at voxel sizes from 0.6 to 1.5 mm.

    Args:
        ct: Folder of normal CTs, as for draw_into_ct.
        output: Folder to create, or one of an earlier start with the same settings.
        bundle: Whose weights to make: lung_tissue_seg, difflung_synthesis or both.
        lung_dir: Folder of lung masks, as for draw_into_ct.
        patients: CSV file with the columns case and patient, as for draw_into_ct.
        patches: File of real emphysema patches, as for draw_into_ct.
        patches_share: Share of each class of patches that is used.
        keep_out: Names of patients, separated by commas, whose cases only validate.
        cases_per_ct: Number of cases drawn into each CT, for each of the bundles.
        phantoms: Number of wholly drawn patients beside the segmenter's, at least 3.
        steps: Number of optimizer steps of the segmenter.
        synthesis_steps: Number of optimizer steps of the synthesizer.
        start: Weights of the segmenter to start from, as earlier ones of this command; from chance if absent.
        seed: Seed for all random draws.
        device: Device to train on, such as cpu or cuda; the bundles' own choice if absent.

    Raises:
        InputError: if the input is wrong, or ``output`` holds something else.
        RunError: if a training fails.
    """
    if bundle not in (SEGMENTER, SYNTHESIZER, "both"):
        raise InputError(f"bundle must be {SEGMENTER}, {SYNTHESIZER} or both, not {bundle}")
    if phantoms <= PHANTOMS_HELD_OUT:
        raise InputError(f"phantoms must be at least {PHANTOMS_HELD_OUT + 1}, not {phantoms}")
    for name, value in (("steps", steps), ("synthesis_steps", synthesis_steps)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    out = [] if keep_out is None else [name.strip() for name in keep_out.split(",") if name.strip()]
    given = {"ct": ct, "lung_dir": lung_dir, "patients": patients, "patches": patches, "start": start}
    settings = {name: None if path is None else str(path) for name, path in given.items()}
    settings |= {"bundle": bundle, "patches_share": patches_share, "keep_out": out, "cases_per_ct": cases_per_ct}
    settings |= {"phantoms": phantoms, "steps": steps, "synthesis_steps": synthesis_steps, "seed": seed}
    output = open_run(output, settings)
    chosen = {SEGMENTER: _segmenter, SYNTHESIZER: _synthesizer}
    for name in [bundle] if bundle != "both" else chosen:
        folder = output / name
        folder.mkdir(exist_ok=True)
        if not (folder / "drawn").exists():
            draw_into_ct(
                ct, folder / "drawn", lung_dir, patients, cases_per_ct, patches=patches, patches_share=patches_share,
                seed=seed, **(AS_SCANNED if name == SYNTHESIZER else {}),
            )  # fmt: skip
        if not (folder / "card.json").is_file():
            card = chosen[name](folder, settings, {} if device is None else {"device": device})
            write_json(folder / "card.json", {"model_sha256": sha256(folder / "model.pt")} | card)
        print(f"wrote {folder / 'model.pt'} and card.json; next: copy both to bundles/{name}/models")


def _segmenter(folder: Path, settings: dict, device: dict) -> dict:
    """Train the segmenter on the cases drawn in a folder, write its weights and return their card."""
    if not (folder / "phantoms").exists():
        phantom(folder / "phantoms", settings["phantoms"], settings["seed"] + 1000)
    write_json(folder / "datalist.json", _with_phantoms(folder, settings["keep_out"]))
    number, length = epochs(settings["steps"])
    overrides = {"dataset_dir": str(folder), "fold": HELD_OUT, "max_epochs": number, "epoch_length": length}
    overrides |= {"val_interval": number}
    if settings["start"] is not None:
        overrides["start"] = str(Path(settings["start"]).absolute())
    configs = SEGMENTER_CONFIGS + [FINE_TUNE] * (settings["start"] is not None)
    _train(SEGMENTER, configs, folder, overrides, settings, device)
    config = read_json(BUNDLES / SEGMENTER / "configs/train.json")
    told = {"spacing_mm": config["spacing_mm"], "overrides": {"network_channels": config["network_channels"]}}
    return _origin(folder, settings, ("phantoms", "steps")) | {"configs": configs} | told


def _synthesizer(folder: Path, settings: dict, device: dict) -> dict:
    """Train the synthesizer on the cases drawn in a folder, write its weights and return their card."""
    drawn = read_json(folder / "drawn/datalist.json")
    drawn["training"] = _drawn_items(drawn, settings["keep_out"])
    write_json(folder / "datalist.json", drawn)
    steps = settings["synthesis_steps"]
    length = min(SYNTHESIS_EPOCH, steps)
    number = -(-steps // length)
    overrides = {"dataset_dir": str(folder), "fold": HELD_OUT, "max_epochs": number, "epoch_length": length}
    overrides |= {"val_interval": number + 1, "save_interval": 1}
    _train(SYNTHESIZER, ["train.json"], folder, overrides, settings, device)
    config = read_json(BUNDLES / SYNTHESIZER / "configs/train.json")
    card = _origin(folder, settings, ("synthesis_steps",)) | {"configs": ["train.json"], "overrides": {}}
    state = torch.load(folder / "model.pt", weights_only=True)
    return card | {"attributes": config["attributes"], "voxel_mm": [round(float(v), 3) for v in state["voxel_mm"]]}


def _train(bundle: str, configs: list[str], folder: Path, overrides: dict, settings: dict, device: dict) -> None:
    """Train a bundle, going on where an earlier start ended, and write its weights in half precision."""
    training = folder / "training"
    overrides = {"seed": settings["seed"], "model_dir": str(training), "output_dir": str(training / "eval")} | overrides
    run_bundle(bundle, configs, overrides | device | {"resume": (training / "training.pt").is_file()},
               training / "train.log")  # fmt: skip
    write_weights(training / "model.pt", folder / "model.pt")


def _drawn_items(drawn: dict, keep_out: list[str]) -> list[dict]:
    """Return the items of drawn cases; those of kept-out patients are in the fold that validates.

    Raises:
        InputError: if a kept-out patient has no case.
    """
    known = {item["patient"] for item in drawn["training"]}
    unknown = [name for name in keep_out if name not in known]
    if unknown:
        raise InputError(f"keep_out names {', '.join(unknown)}, but the patients are {', '.join(sorted(known))}")
    return [
        item
        | {key: f"drawn/{item[key]}" for key in ("image", "label")}
        | {"fold": HELD_OUT if item["patient"] in keep_out else ALWAYS_TRAINED}
        for item in drawn["training"]
    ]


def _with_phantoms(folder: Path, keep_out: list[str]) -> dict:
    """Return the datalist of drawn and phantom cases."""
    drawn = read_json(folder / "drawn/datalist.json")
    items = _drawn_items(drawn, keep_out)
    for number, image in enumerate(sorted((folder / "phantoms/images").iterdir())):
        paths = {kind[:-1]: f"phantoms/{kind}/{image.name}" for kind in ("images", "labels")}
        fold = HELD_OUT if number < PHANTOMS_HELD_OUT else ALWAYS_TRAINED
        items.append(paths | {"patient": image.name.removesuffix(".nii.gz"), "fold": fold})
    return {"labels": drawn["labels"], "numTraining": len(items), "training": items}


def write_weights(trained: Path, path: Path) -> None:
    """Write a state dict in half precision, but for its buffers: a variance above 65504 would become infinite.

    Raises:
        RunError: if a weight is not finite, or too large for half precision.
    """
    state = torch.load(trained, map_location="cpu", weights_only=True)
    buffers = ("running_", "tissue_presence", "tissue_mean", "tissue_deviation", "voxel_mm")
    halved = {
        name: value.half() if value.is_floating_point() and not name.rsplit(".", 1)[-1].startswith(buffers) else value
        for name, value in state.items()
    }
    wrong = [name for name, value in halved.items() if not torch.isfinite(value).all()]
    if wrong:
        raise RunError(f"{trained} is not finite in half precision: {', '.join(wrong)}")
    with atomic_file(path) as temporary:
        torch.save(halved, temporary)


def _origin(folder: Path, settings: dict, more: tuple[str, ...]) -> dict:
    """Return where weights come from; no path of this machine is in it."""
    records = read_json(folder / "drawn/provenance.json")
    items = read_json(folder / "datalist.json")["training"]
    owners = {Path(item["image"]).name.removesuffix(".nii.gz"): item for item in items}
    cases = {}
    for record in records:
        item = owners[record["case"]]
        if item["fold"] != HELD_OUT:
            row = {"case": record["case"].rsplit("_drawn", 1)[0], "patient": item["patient"]}
            digests = {"image_sha256": record["sha256"], "content_sha256": record["content_sha256"]}
            cases[row["case"]] = row | digests
    patches, start = settings["patches"], settings["start"]
    made = ("patches_share", "keep_out", "cases_per_ct", "seed", *more)
    parts = [f"disease drawn into {len(cases)} real CTs of normal lungs"]
    parts += ["drawn patients"] * ("phantoms" in more) + ["labelled patches of real emphysema"] * (patches is not None)
    return {
        "trained_on": f"{', '.join(parts)}; no tissue map by a human reader",
        "cases": list(cases.values()),
        "drawn_cases": sum(item["fold"] != HELD_OUT for item in items),
        "patches": None if patches is None else {"file": Path(patches).name, "sha256": sha256(patches)},
        "start": None if start is None else {"file": Path(start).name, "sha256": sha256(start)},
        **{name: settings[name] for name in made},
    }
