"""An app for MONAI Deploy from a trained segmenter: CT as a DICOM series in, DICOM SEG and measurements out."""

import shutil
from pathlib import Path

from tools.exports import export_torchscript
from tools.files import InputError, RunError, new_directory, read_json

HERE = Path(__file__).parent
# What the app runs with; the tests install the same. pip would take holoscan-cli 5.0, which cannot make a MAP any more.
REQUIREMENTS = """\
torch==2.13.0
monai-deploy-app-sdk==4.0.0
holoscan-cli==3.11.0
holoscan-cu13==3.11.0
monai==1.6.1
highdicom==0.28.2
pydicom==3.0.2
nibabel==5.4.2
scipy==1.17.1
"""
APP_YAML = """\
application:
  title: Lung tissue segmentation (research use only)
  version: "{version}"
  inputFormats: ["file"]
  outputFormats: ["file"]
resources:
  cpu: 1
  gpu: 0
  memory: 8Gi
"""


def write_app(bundle_root: Path, output: Path) -> None:
    """Write the app: a folder that ``python OUTPUT -i DICOM -o RESULTS -m OUTPUT/models`` runs and a MAP is made of.

    Args:
        bundle_root: the segmenter's bundle, with models/model.pt.
        output: new folder for the app's source, app.yaml, requirements.txt, models/model.ts, and the bundle's scripts
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
        shutil.copy(HERE / "extents.py", folder)
        shutil.copy(bundle_root / "LICENSE", folder)
        shutil.copytree(bundle_root / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "requirements.txt").write_text(REQUIREMENTS)
        version = read_json(bundle_root / "configs/metadata.json")["version"]
        (folder / "app.yaml").write_text(APP_YAML.format(version=version))
        (folder / "models").mkdir()
        try:
            export_torchscript(bundle_root, folder / "models/model.ts")
        except RunError as error:
            raise RunError(f"the export of {bundle_root} as TorchScript failed: {error}") from None
