"""Labels a DICOM series through MONAI Label and stores its DICOM SEG: ``PYTHON label_series.py SERVER SERIES_UID``.

It runs where MONAI Label is installed and imports nothing of this project. The server must have been started with
``--studies`` at a DICOMweb address, from which it takes the series and where it stores the SEG. Research use only.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from monailabel.client import MONAILabelClient

MODEL = "lung_tissue_seg"
TISSUES = Path(__file__).parents[2] / f"bundles/{MODEL}/docs/lung_tissues_dicom.json"


def label_info(values: set[int], tissues: dict) -> list[dict]:
    """Return what MONAI Label is to write of each segment, in the order of the values that a map holds.

    MONAI Label gives the first entry to the lowest value in the map, the second to the next, and so on. With an entry
    for a tissue that the map lacks, dcmqi finds other values than the entries name, and the server answers 500.

    Args:
        values: Label values in the map.
        tissues: Content of ``lung_tissues_dicom.json``.
    """
    known = {segment["labelID"]: segment for segment in tissues["segmentAttributes"][0]}
    names = {"model_name": tissues["SeriesDescription"]}  # MONAI Label makes it the description of the series
    return [names | {"segmentAttribute": known[value]} for value in sorted(values - {0})]


def store(client: MONAILabelClient, series: str, file: str) -> list[str]:
    """Have the server store a tissue map as DICOM SEG, and return its tissues' names; none, nothing stored.

    Args:
        client: Client of a server on a DICOMweb address.
        series: SeriesInstanceUID.
        file: The tissue map, NIfTI on the series' grid.
    """
    values = {int(value) for value in np.unique(nib.load(file).dataobj)}
    info = label_info(values, json.loads(TISSUES.read_text(encoding="utf-8")))
    if info:
        client.save_label(series, file, tag="final", params={"label_info": info})
    return [segment["segmentAttribute"]["SegmentLabel"] for segment in info]


def main() -> None:
    """Read the command line, label the series and say what was stored."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0].split(":")[0])
    parser.add_argument("server", help="address of MONAI Label, such as http://127.0.0.1:8000")
    parser.add_argument("series", help="SeriesInstanceUID of the CT")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        client = MONAILabelClient(given.server, tmpdir=folder)
        file, _ = client.infer(MODEL, given.series, {"device": given.device, "result_dtype": "uint8"})
        found = store(client, given.series, file)
    if not found:
        sys.exit("no lung was found; nothing is stored")
    print(f"stored a DICOM SEG of {', '.join(found)}")


if __name__ == "__main__":
    main()
