"""An app for MONAI Deploy from a trained segmenter: CT as a DICOM series in, DICOM SEG and measurements out."""

import shutil
from pathlib import Path

from tools.io.files import InputError, RunError, new_directory, read_json
from tools.quantify import extents
from tools.serving.exports import export

HERE = Path(__file__).parent
DICOM_SEG = HERE.parent / "io/dicom_seg.py"  # needs highdicom, which is not installed here


def write_app(bundle_root: Path, output: Path) -> None:
    """Write the app: a folder that ``python OUTPUT -i DICOM -o RESULTS -m OUTPUT/models`` runs and a MAP is made of.

    Args:
        bundle_root: The segmenter's bundle, with models/model.pt.
        output: New folder for the app's source, app.yaml, requirements.txt, models/model.ts, and the bundle's scripts
            and licence.

    Raises:
        InputError: if the bundle has no weights, is not the segmenter's, or the output exists.
        RunError: if the export as TorchScript fails.
    """
    bundle_root = Path(bundle_root)
    weights = bundle_root / "models/model.pt"
    if not (bundle_root / "scripts/lungs.py").is_file():
        raise InputError(f"{bundle_root} has no scripts/lungs.py; the app is made of the bundle lung_tissue_seg")
    if not weights.is_file():
        raise InputError(f"{weights} does not exist; train the bundle first")
    with new_directory(output) as folder:
        shutil.copy(HERE / "deploy_app.py", folder / "__main__.py")
        shutil.copy(extents.__file__, folder)
        shutil.copy(DICOM_SEG, folder)
        shutil.copy(bundle_root / "LICENSE", folder)
        shutil.copytree(bundle_root / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        # pinned: pip would take holoscan-cli 5.0, which cannot make a MAP any more
        shutil.copy(HERE / "deploy_requirements.txt", folder / "requirements.txt")
        version = read_json(bundle_root / "configs/metadata.json")["version"]
        app = (HERE / "deploy_app.yaml").read_text(encoding="utf-8")
        (folder / "app.yaml").write_text(app.format(version=version), encoding="utf-8")
        (folder / "models").mkdir()
        try:
            export(bundle_root, folder / "models", ["torchscript"])
        except RunError as error:
            raise RunError(f"the export of {bundle_root} as TorchScript failed: {error}") from None
