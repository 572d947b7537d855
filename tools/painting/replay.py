"""Making a painted case again from the manifest, and proving that it is the same, voxel by voxel."""

import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from tools.io.files import InputError, RunError, check_writable, sha256
from tools.io.volume import SYNTHETIC_MARK, load_ct, save_nifti
from tools.painting.manifest import FREE_METHODS, as_stored, read_manifest, voxels_sha256
from tools.workflows.synthesizer import paint, write_conditions


def replay(manifest: Path, case: str, output: Path | None = None) -> None:
    """Make a painted case again from its source, its map and the weights, and compare it with what was made then.

    Args:
        manifest: The manifest.jsonl of an earlier `augment`; the files it names are found from its folder.
        case: The painted case to make again.
        output: NIfTI file to write; nothing is written if not given.

    Raises:
        InputError: if the manifest lacks the case, or its source, map or weights are missing or have changed.
        RunError: if a voxel differs.
    """
    manifest, output = Path(manifest), Path(output) if output else None
    lines = {line["case"]: line for line in read_manifest(manifest)}
    if case not in lines:
        raise InputError(f"{manifest} has no case {case}; it has {', '.join(sorted(lines)[:5])}, ...")
    line, folder = lines[case], manifest.parent
    if line.get("method") in FREE_METHODS or not line.get("checkpoint"):
        made = "drawn" if line.get("method") == "drawn" else "pasted"
        raise InputError(f"{case} was {made}, not painted; run augment again with the settings in {folder}/run.json")
    files = {}
    for what, path, digest in (
        ("source", line["image_file"], line["source_sha256"]),
        ("source's map", line["label_file"], line["label_sha256"]),
        ("target map", line["map_file"], line["map_sha256"]),
        ("synthesizer", line["checkpoint"], line["checkpoint_sha256"]),
    ):
        files[what] = (folder / path).resolve()
        if not files[what].is_file():
            raise InputError(f"the {what} of {case}, {files[what]}, does not exist")
        if sha256(files[what]) != digest:
            raise InputError(f"the {what} of {case}, {files[what]}, has changed since: its SHA-256 is another one")
    if output:
        if not output.name.endswith((".nii", ".nii.gz")):
            raise InputError(f"output {output} must be a .nii or .nii.gz file")
        check_writable(output.parent)
    print(f"painting {case} again: {line['steps']} steps, seed {line['seed']}, {line['threads']} threads", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for what, kind in (("source", "images"), ("source's map", "labels"), ("target map", "targets")):
            (work / kind).mkdir()
            suffix = ".nii.gz" if files[what].name.endswith(".gz") else ".nii"
            (work / kind / (case + suffix)).symlink_to(files[what])
        attributes = line["painting"]["attributes"]
        write_conditions({case: line["conditions"]}, attributes, work / "conditions.csv")
        paint(
            work,
            files["synthesizer"],
            {"region_margin": line.get("region_margin", 0)} | line["painting"],
            line["threads"],
            work / "paint.log",
        )
        painted = nib.load(work / "painted" / f"{case}.nii.gz").get_fdata(dtype=np.float32)
        shutil.rmtree(work / "painted")
    _, image = load_ct(files["source"])
    voxels = as_stored(painted, image)
    if output:
        save_nifti(voxels, image, output, f"{SYNTHETIC_MARK} {line['method']} of {line['source']}")
        print(f"wrote {output}")
    if voxels_sha256(voxels) != line["voxels_sha256"]:
        raise RunError(
            f"{case} differs from what was painted with {line['versions']} on {line['processor']}; "
            "another version, kind of processor or GPU rounds differently"
        )
    print(f"{case} is the same, voxel by voxel")
