"""``python -m tools weights``: the segmenter's weights from normal CT alone, without any human label."""

from pathlib import Path

import torch
from monai.bundle import ConfigParser

from tools.bundles import BUNDLES
from tools.io.files import InputError, RunError, atomic_file, open_run, read_json, sha256, write_json
from tools.phantom.draw_into_ct import draw_into_ct
from tools.phantom.phantom import phantom
from tools.workflows.run import run_bundle
from tools.workflows.segmenter import SEGMENTER, epochs, of_inference

CONFIGS = ["train.json", "whole_slices.yaml"]
ALWAYS_TRAINED, HELD_OUT = -1, 0
PHANTOMS_HELD_OUT = 2  # so that a run that keeps no patient out has something to validate on


def weights(
    ct: Path,
    output: Path,
    lung_dir: Path | None = None,
    patients: Path | None = None,
    patches: Path | None = None,
    patches_share: float = 1.0,
    keep_out: str | None = None,
    cases_per_ct: int = 16,
    phantoms: int = 12,
    steps: int = 6000,
    start: Path | None = None,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Draw disease into normal CT, train the segmenter on it, and write its weights with a card of their origin.

    Writes ``model.pt`` (float16), ``card.json`` (every CT with its SHA-256, settings, steps), and below ``drawn``,
    ``phantoms`` and ``training`` what they were made from. Started again with the same settings, it goes on.

    Args:
        ct: Folder of normal CTs, as for draw_into_ct.
        output: Folder to create, or one of an earlier start with the same settings.
        lung_dir: Folder of lung masks, as for draw_into_ct.
        patients: CSV file with the columns case and patient, as for draw_into_ct.
        patches: File of real emphysema patches, as for draw_into_ct.
        patches_share: Share of each class of patches that is used.
        keep_out: Names of patients, separated by commas, whose cases only validate.
        cases_per_ct: Number of cases drawn into each CT.
        phantoms: Number of wholly drawn patients beside them, at least 3.
        steps: Number of optimizer steps.
        start: Weights to start from, as earlier ones of this command; from chance if absent.
        seed: Seed for all random draws.
        device: Device to train on, such as cpu or cuda; the bundle's own choice if absent.

    Raises:
        InputError: if the input is wrong, or ``output`` holds something else.
        RunError: if the training fails.
    """
    if phantoms <= PHANTOMS_HELD_OUT:
        raise InputError(f"phantoms must be at least {PHANTOMS_HELD_OUT + 1}, not {phantoms}")
    if steps < 1:
        raise InputError(f"steps must be at least 1, not {steps}")
    out = [] if keep_out is None else [name.strip() for name in keep_out.split(",")]
    given = {"ct": ct, "lung_dir": lung_dir, "patients": patients, "patches": patches, "start": start}
    settings = {name: None if path is None else str(path) for name, path in given.items()}
    settings |= {"patches_share": patches_share, "keep_out": out, "cases_per_ct": cases_per_ct}
    settings |= {"phantoms": phantoms, "steps": steps, "seed": seed}
    output = open_run(output, settings)
    if not (output / "drawn").exists():
        draw_into_ct(
            ct, output / "drawn", lung_dir, patients, cases_per_ct, patches=patches, patches_share=patches_share,
            seed=seed,
        )  # fmt: skip
    if not (output / "phantoms").exists():
        phantom(output / "phantoms", phantoms, seed + 1000)
    write_json(output / "datalist.json", _datalist(output, out))
    number, length = epochs(steps)
    training = output / "training"
    overrides = {"dataset_dir": str(output), "fold": HELD_OUT, "seed": seed, "max_epochs": number}
    overrides |= {"epoch_length": length, "val_interval": number, "model_dir": str(training)}
    overrides |= {"output_dir": str(training / "eval"), "resume": (training / "training.pt").is_file()}
    if start is not None:
        overrides["start"] = str(Path(start).absolute())
    if device is not None:
        overrides["device"] = device
    run_bundle(SEGMENTER, CONFIGS + ["fine_tune.yaml"] * (start is not None), overrides, training / "train.log")
    write_weights(training / "model.pt", output / "model.pt")
    write_json(output / "card.json", _card(output, settings))
    print(f"wrote {output / 'model.pt'} and {output / 'card.json'}; next: copy both to bundles/{SEGMENTER}/models")


def _datalist(output: Path, keep_out: list[str]) -> dict:
    """Return the datalist of drawn and phantom cases; those of kept-out patients are in the fold that validates.

    Raises:
        InputError: if a kept-out patient has no case.
    """
    drawn = read_json(output / "drawn/datalist.json")
    known = {item["patient"] for item in drawn["training"]}
    unknown = [name for name in keep_out if name not in known]
    if unknown:
        raise InputError(f"keep_out names {', '.join(unknown)}, but the patients are {', '.join(sorted(known))}")
    items = [
        item
        | {key: f"drawn/{item[key]}" for key in ("image", "label")}
        | {"fold": HELD_OUT if item["patient"] in keep_out else ALWAYS_TRAINED}
        for item in drawn["training"]
    ]
    for number, image in enumerate(sorted((output / "phantoms/images").iterdir())):
        paths = {kind[:-1]: f"phantoms/{kind}/{image.name}" for kind in ("images", "labels")}
        fold = HELD_OUT if number < PHANTOMS_HELD_OUT else ALWAYS_TRAINED
        items.append(paths | {"patient": image.name.removesuffix(".nii.gz"), "fold": fold})
    return {"labels": drawn["labels"], "numTraining": len(items), "training": items}


def write_weights(trained: Path, path: Path) -> None:
    """Write a state dict with its floating point numbers in half precision."""
    state = torch.load(trained, map_location="cpu", weights_only=True)
    # statistics of a batch norm stay as they are: a variance above 65504 would become infinite
    halved = {n: v.half() if v.is_floating_point() and "running" not in n else v for n, v in state.items()}
    infinite = [name for name, value in halved.items() if not torch.isfinite(value).all()]
    if infinite:
        raise RunError(f"the weights of {trained} are not finite in half precision: {', '.join(infinite)}")
    with atomic_file(path) as temporary:
        torch.save(halved, temporary)


def _of_inference() -> dict:
    """Return the ids of the overlay that inference must share: ``spacing_mm``, and ``overrides`` for the others."""
    overlay = ConfigParser.load_config_file(str(BUNDLES / SEGMENTER / "configs" / CONFIGS[-1]))
    shared = of_inference(overlay)
    return {"spacing_mm": shared.pop("spacing_mm"), "overrides": shared}


def _card(output: Path, settings: dict) -> dict:
    """Return where the weights come from; no path of this machine is in it."""
    records = read_json(output / "drawn/provenance.json")
    sources = {record["source"]: record["sha256"] for record in records}
    patches, start = settings["patches"], settings["start"]
    made = {name: settings[name] for name in ("patches_share", "keep_out", "cases_per_ct", "phantoms", "steps", "seed")}
    return {
        "model_sha256": sha256(output / "model.pt"),
        "trained_on": "disease drawn into real CT of normal lungs, and drawn patients; no human label",
        "configs": CONFIGS,
        **_of_inference(),
        "sources": sources,
        "patches": None if patches is None else {"file": Path(patches).name, "sha256": sha256(patches)},
        "start": None if start is None else {"file": Path(start).name, "sha256": sha256(start)},
        "cases": len(records),
        **made,
    }
