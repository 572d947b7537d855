"""What lesions of each tissue are like where there are no training patients to ask: measured in drawn ones, and kept.

``typical_lesions.json`` holds measures of ``tools.maps.shape`` and was made, after ``python -m tools phantom --output
phantom --patients 24 --size 256,256,48``, by
``python -c "from tools.maps.typical import write; write('phantom', 'tools/maps/typical_lesions.json')"``.
"""

import json
from pathlib import Path

import numpy as np

from tools.io.files import read_json, write_text
from tools.io.volume import canonical, canonical_spacing, list_nifti, load_labels
from tools.maps.growth import LesionModel
from tools.maps.lesions import find_lesions
from tools.tissues import pathological_tissues, tissue_labels

FILE = Path(__file__).with_name("typical_lesions.json")
KEPT = 16  # lesions of each tissue, evenly over the order of their volumes
VOLUME_ML = (1.0, 150.0)  # smaller ones are mostly grain of the drawing, larger ones several that touch


def typical_model(tissue: str) -> LesionModel:
    """Return a model of one tissue's lesions.

    Raises:
        KeyError: if the tissue has none; see :func:`tissues`.
    """
    return LesionModel.from_measures(read_json(FILE)[tissue])


def tissues() -> list[str]:
    """Return the tissues that have typical lesions."""
    return list(read_json(FILE))


def write(phantom: Path, path: Path) -> None:
    """Measure the lesions of labelled patients and keep some of each tissue.

    Args:
        phantom: Folder with ``labels``.
        path: JSON file to write: tissue to a list of measures.
    """
    labels, found = tissue_labels(), {}
    ill = {tissue: labels[tissue] for tissue in pathological_tissues()}
    for name, file in list_nifti(Path(phantom) / "labels").items():
        label, image = load_labels(file, labels)
        for lesion in find_lesions(name, canonical(label, image.affine), None, canonical_spacing(image), ill):
            if VOLUME_ML[0] <= lesion.measures["volume_ml"] <= VOLUME_ML[1]:
                found.setdefault(lesion.tissue, []).append(lesion.measures)
    kept = {tissue: _spread(found[tissue]) for tissue in ill if tissue in found}
    rows = {tissue: [json.dumps(row) for row in rows] for tissue, rows in kept.items()}
    text = ",\n".join(f' "{tissue}": [\n  ' + ",\n  ".join(lines) + "\n ]" for tissue, lines in rows.items())
    write_text(path, "{\n" + text + "\n}\n")


def _spread(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return some rows, evenly over the order of their volumes, each number with three digits behind the point."""
    rows = sorted(rows, key=lambda row: row["volume_ml"])
    places = np.linspace(0, len(rows) - 1, min(KEPT, len(rows))).round().astype(int)
    return [{name: round(value, 3) for name, value in rows[place].items()} for place in places]
