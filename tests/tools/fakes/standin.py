"""A small data set, and stand-ins for the segmenter and the synthesizer, for the tests of the comparison."""

import json
import sys
import types
import zlib

import nibabel as nib
import numpy as np
import pandas

from tools.comparison import results
from tools.data.datalist import read_datalist, split
from tools.data.provenance import GATE_CARD, MAPS_CARD, SYNTHESIZER_CARD, cases_read
from tools.io.files import read_json, write_json
from tools.io.volume import case_name
from tools.tissues import tissue_labels

LABELS = tissue_labels()
TISSUES = [name for name in LABELS if name != "background"]
GAIN = {"oversampled": 0.05, "cbmat": 0.1, "cbmat_filter": 0.1}


def save(array, path, size=0.7):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([size, size, 5.0, 1.0])), path)


def make_case(folder, case, values, size=0.7):
    label = np.ones((8, 8, 2), np.int16)
    for row, value in enumerate(values):
        label[row] = value
    save(label, folder / "labels" / f"{case}.nii.gz", size)
    hu = np.full((8, 8, 2), -800, np.int16)
    hu[6:] = 40
    number = zlib.crc32(case.encode())
    hu[:3, 0, 0] -= np.array([number % 200, number // 200 % 200, number // 40000 % 200], np.int16)
    save(hu, folder / "images" / f"{case}.nii.gz", size)
    return {"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz"}


def twelve_patients(tmp_path, folds=2):
    """Twelve patients with two cases each in some folds; consolidation in one patient of each fold only."""
    folder, items = tmp_path / "data", []
    for number in range(12):
        values = [2, 3, 4, 5] if number < 2 else [2, 3, 4]
        for visit in range(2):
            case = make_case(folder, f"case{number:02d}{'ab'[visit]}", values, size=0.6 if number % 2 else 0.8)
            items.append(case | {"fold": number % folds, "patient": f"p{number:02d}"})
    write_json(folder / "datalist.json", {"labels": LABELS, "training": items})
    return folder / "datalist.json"


class Standin:
    """Stands in for tools.painting.augment and for tools.workflows.run, and remembers what it was asked to do."""

    def __init__(self):
        self.trained, self.augmented, self.dies_at, self.settings = [], [], None, {}
        self.configs = {}
        self.planted = {}  # card -> a case added to those it names
        self.held_out, self.planted_items, self.donor = None, [], None
        self.accepts = True

    def augment(
        self, datalist, fold, output, method, segmenter, balance, steps, max_cases, seed, overrides, synthesizer, **more
    ):
        self.augmented.append((fold, method, seed))
        assert (segmenter is None) == (method in ("copy_paste", "drawn"))
        self.asked = more
        assert segmenter is None or (segmenter.is_file() and segmenter.parent.name == "real")
        real = read_datalist(datalist)
        train, test = split(real, fold)
        cases = cases_read(train)
        for card in (SYNTHESIZER_CARD, MAPS_CARD, GATE_CARD):
            write_json(output / card, {"cases": cases + [row for at, row in self.planted.items() if at == card]})
        source, real_items = train[0], [case.item() for case in train + test]
        new = make_case(output, f"painted_{method}", [5, 5])
        new |= {"fold": -1, "patient": source.patient, "synthetic": True, "source": source.name}
        line = {"case": f"painted_{method}", "source": new["source"], "tissues": ["consolidation"]}
        line |= {"accepted": self.accepts, "donors": [{"case": self.donor or new["source"]}]}
        (output / "manifest.jsonl").write_text(json.dumps(line) + "\n")
        content = {"labels": real["labels"], "held_out_fold": fold if self.held_out is None else self.held_out}
        for name, kept in (("datalist_unfiltered.json", [new]), ("datalist.json", [new] * self.accepts)):
            write_json(output / name, content | {"training": [*real_items, *kept, *self.planted_items]})

    def run_bundle(self, bundle, config_files, overrides, log, variables=None):
        external = config_files == ["train.json", "evaluate.json"]
        assert bundle == "lung_tissue_seg" and config_files[0] == "train.json"
        assert external or config_files[-1] == "scores.yaml"
        folder = log.parent
        if self.dies_at == len(self.trained):
            self.dies_at = None
            (folder / "half").write_text("half")
            raise KeyboardInterrupt
        if not external:
            self.trained.append(folder.relative_to(next(up for up in folder.parents if up.name == "out")).as_posix())
            (folder / "model.pt").write_text("weights")
            self.settings[self.trained[-1]], self.configs[self.trained[-1]] = overrides, config_files
        content = read_json(overrides["datalist"])
        for item in content["training"]:
            assert (folder / item["image"]).is_file() and (folder / item["label"]).is_file()
        rows = []
        for item in content["training"]:
            number, case = int(item["patient"][1:]), case_name(item["image"])
            for tissue in TISSUES if item["fold"] == overrides["fold"] else []:
                dice = 0.5 + 0.01 * number
                if tissue == "fibrosis":
                    dice += GAIN.get(folder.name, 0) + (0.02 if case.endswith("b") else 0)
                if tissue == "consolidation" and number >= 2:
                    dice = None
                row = {"case": case, "tissue": tissue, "dice": dice, "surface_dice": dice, "ml_predicted": 0.5}
                row |= {"state": "false" if dice is None else "present"}
                rows.append(row | {"percent_error": -3.0 if folder.name == "real" else 1.0})
        pandas.DataFrame(rows).to_csv(folder / results.SCORES_FILE, index=False)
        confusion = pandas.DataFrame(0, index=list(LABELS), columns=list(LABELS))
        confusion.loc["fibrosis", ["fibrosis", "consolidation"]] = 60, 40
        confusion.loc["healthy", ["healthy", "consolidation"]] = 50, 50
        confusion.loc["consolidation", "consolidation"] = 10
        confusion.to_csv(folder / "confusion.csv", index_label="true")


def install(monkeypatch) -> Standin:
    """Put a stand-in where compare finds the bundles and augment."""
    standin = Standin()
    bundle = types.SimpleNamespace(run_bundle=standin.run_bundle, check_overrides=lambda *_: None)
    monkeypatch.setitem(sys.modules, "tools.workflows.run", bundle)
    monkeypatch.setitem(sys.modules, "tools.painting.augment", types.SimpleNamespace(augment=standin.augment))
    return standin
