"""``python -m tools package``: a bundle as a zip that the Model Zoo could release, proven to run alone."""

import hashlib
import shutil
import tempfile
from pathlib import Path

from tools.bundles import BUNDLES
from tools.flags import listed
from tools.io.files import InputError, check_new_directory, new_directory, read_json, sha256, write_json
from tools.serving import exports
from tools.serving.archive import sha1, unpack, write_zip
from tools.serving.bundle_check import bundle_problems
from tools.serving.deploy import write_app
from tools.serving.publish import UNNAMED, check_repository, credentials, model_info, to_hugging_face, upload_plan
from tools.serving.triton import write_repository
from tools.serving.unpacked import Proof, draw_patients
from tools.serving.verdict import tell_verdict
from tools.serving.workflow_check import workflow_problems
from tools.workflows.run import versions
from tools.workflows.segmenter import SEGMENTER
from tools.workflows.synthesizer import SYNTHESIZER

TARGETS = ("zoo", "torchscript", "onnx", "triton", "deploy")
UNIT_TESTS = BUNDLES.parent / "tests/zoo"
LEFT_OUT = ("__pycache__", ".gitkeep", "eval", "models")  # what running leaves in a bundle's folder


def package(
    bundle: str,
    output: Path,
    weights: Path | None = None,
    targets: str = "zoo",
    data_license: Path | None = None,
    repository: str | None = None,
    publish: str | None = None,
) -> None:
    """Check a bundle, zip it, unpack it elsewhere, run it there, and write what a release needs.

    The output holds NAME_vVERSION.zip; package.json, every command that was run from the unpacked zip and how it went;
    model_info.json, the entry by which MONAI finds the release; upload.json, what publishing would send where;
    unit_tests, as the Model Zoo keeps them beside its bundles; and what the targets made. Nothing is written unless all
    went well, and nothing leaves this machine without ``--publish``. The same command again finds what it made and
    stays with it; it uploads from there.

    Args:
        bundle: The bundle's folder name below ``bundles/``.
        output: Folder to create.
        weights: State dict to ship as models/model.pt; the bundle's own by default.
        targets: Any of zoo (the Model Zoo's check of the network), torchscript, onnx, triton, deploy (segmenter only).
        data_license: Text for docs/data_license.txt: what the data behind the weights permit; publishing needs it.
        repository: The owner/name on GitHub or Hugging Face, for the addresses.
        publish: Place to upload to, huggingface, with the credentials in HF_TOKEN; a release on GitHub is made by gh.

    Raises:
        InputError: if the bundle, its weights or an argument is not fit; all problems of the bundle are named together.
        RunError: if a command fails in the unpacked zip, or changes it, or an upload fails.
    """
    output, targets = Path(output), _targets(bundle, targets)
    finished = output / "package.json"
    if not finished.is_file():
        check_new_directory(output)
    if repository is not None:
        check_repository(repository)
    token = credentials(publish, bundle, output, repository)
    if publish and data_license is None:
        raise InputError(
            f"publish {publish} needs --data_license, a text that says what the data behind the weights permit"
        )
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        staged = _stage(bundle, weights, data_license, work / "staged" / bundle)
        asked = {"targets": targets, "repository": repository, "content": _content(staged)}
        if finished.is_file():
            archive = _made_earlier(output, asked)
            print(f"{archive} was made earlier by the same command and stays as it is")
        else:
            archive = _make(staged, output, asked, work)
            print(f"wrote {archive} ({archive.stat().st_size / 1e6:.1f} MB); package.json says what was run from it")
        if publish:
            root, version = unpack(archive, work / "published/bundles"), archive.stem.rsplit("_v", 1)[1]
            print(f"uploaded as {to_hugging_face(root, version, repository, token)}")
    if not publish:
        print("nothing was uploaded; upload.json says what --publish huggingface or gh release create would send where")


def _targets(bundle: str, targets: str) -> list[str]:
    """Return the targets that are asked for, after checking them and the bundle's name."""
    known = sorted(path.name for path in BUNDLES.iterdir() if path.is_dir())
    if bundle not in known:
        raise InputError(f"there is no bundle {bundle!r}; there are {', '.join(known)}")
    names = listed(targets)
    unknown = [name for name in names if name not in TARGETS]
    if unknown or not names:
        raise InputError(f"targets are of {', '.join(TARGETS)}, not {unknown[0] if unknown else targets!r}")
    if "deploy" in names and bundle == SYNTHESIZER:
        raise InputError(
            f"target deploy is for {SEGMENTER}: its app turns a CT into a segmentation, which {bundle} does not"
        )
    return names


def _stage(bundle: str, weights: Path | None, data_license: Path | None, staged: Path) -> Path:
    """Return a copy of the bundle with the weights, and the data's licence, that will be shipped."""
    weights = BUNDLES / bundle / "models/model.pt" if weights is None else Path(weights)
    if not weights.is_file():
        raise InputError(f"weights {weights} do not exist; train the bundle, or name weights with --weights")
    shutil.copytree(BUNDLES / bundle, staged, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    (staged / "models").mkdir()
    shutil.copyfile(weights, staged / "models/model.pt")
    card = weights.with_name("card.json")
    told = read_json(card) if card.is_file() else {}
    if "comparison" in told:
        tell_verdict(staged, told)
    elif "trained_on" in told:  # cards of trainings name patients and stay at home
        shutil.copyfile(card, staged / "models/card.json")
    if data_license is not None:
        if not Path(data_license).is_file():
            raise InputError(f"data_license {data_license} does not exist")
        shutil.copyfile(data_license, staged / "docs/data_license.txt")
    return staged


def _prove(proof: Proof, targets: list[str], output: Path) -> None:
    """Run the workflows and the targets from the unpacked zip; their files go into ``output``."""
    stem = next(output.glob("*.zip")).stem
    proof.workflows()
    if "zoo" in targets:
        proof.zoo_checks()
    kinds = [kind for kind in exports.KINDS if kind in targets]
    if kinds:
        proof.export(kinds, output / stem)
    if "triton" in targets:
        proof.make("triton", write_repository, output / "triton")
    if "deploy" in targets:
        proof.make("deploy", write_app, output / "deploy")
    proof.check_untouched()


def _content(staged: Path) -> str:
    """Return one SHA-256 of all files of a staged bundle and their names."""
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    told = "".join(f"{sha256(path)} {path.relative_to(staged).as_posix()}\n" for path in files)
    return hashlib.sha256(told.encode()).hexdigest()


def _made_earlier(output: Path, asked: dict) -> Path:
    """Return the zip that the same command made in ``output``; InputError if another command did, or it is damaged."""
    card = read_json(output / "package.json")
    if card.get("asked") != asked:
        raise InputError(f"output {output} is not empty: it holds another package; remove it or name another folder")
    archive = output / card["zip"]
    if not archive.is_file() or sha1(archive) != card["sha1"]:
        raise InputError(f"output {output} holds a package whose zip is missing or damaged; remove it")
    return archive


def _make(staged: Path, output: Path, asked: dict, work: Path) -> Path:
    """Return the zip of a staged bundle in ``output``, once it was unpacked elsewhere and proven to run there."""
    bundle = staged.name
    with new_directory(output) as partial:
        dataset_dir, cases_dir = draw_patients(work / "drawn", bundle)
        problems = bundle_problems(staged) + workflow_problems(staged, dataset_dir, cases_dir, work / "built")
        if problems:
            raise InputError(f"{bundle} is not fit for release: {'; '.join(problems)}")
        (staged / "large_files.yml").unlink(missing_ok=True)  # the zip holds the large files themselves
        version = read_json(staged / "configs/metadata.json")["version"]
        archive = partial / f"{bundle}_v{version}.zip"
        write_zip(staged, archive)
        root = unpack(archive, work / "somebody else/bundles")
        proof = Proof(root, work / "runs", dataset_dir, cases_dir, output.with_name(f"{output.name}.failed.log"))
        _prove(proof, asked["targets"], partial)
        _describe(archive, root, asked, proof.steps)
    return output / archive.name


def _describe(archive: Path, root: Path, asked: dict, steps: list[dict]) -> None:
    """Write package.json, model_info.json, upload.json and the unit tests beside the zip."""
    output, (bundle, version) = archive.parent, archive.stem.rsplit("_v", 1)
    card = {"bundle": bundle, "version": version, "zip": archive.name, "bytes": archive.stat().st_size}
    card |= {"sha1": sha1(archive), "asked": asked, "versions": versions(), "steps": steps}
    repository = asked["repository"] or UNNAMED
    write_json(output / "package.json", card)
    write_json(output / "model_info.json", model_info(archive, repository))
    write_json(output / "upload.json", upload_plan(archive, root, repository))
    (output / "unit_tests").mkdir()
    for path in sorted(UNIT_TESTS.glob(f"test_{bundle}*.py")):
        shutil.copyfile(path, output / "unit_tests" / path.name)
