"""The report: complete, self-contained, escaped, and honest about what was not run."""

import base64
import csv
import html.parser
import io
import json
import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tools import arms, pictures, results
from tools.files import InputError, read_json, write_json
from tools.report import acceptance, answers, augmented_folders, report

LABELS = {"background": 0, "healthy": 1, "ground_glass": 2, "fibrosis": 3, "emphysema": 4, "consolidation": 5}
EVIL = "<script>alert('x')</script>&\"p"
GAIN = {"real": 0.0, "oversampled": -0.2, "copy_paste": 0.0, "synthetic": 0.25}


class Page(html.parser.HTMLParser):
    """Collects tags, images, links and visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.addresses, self.text, self.open = [], [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag == "img":
            self.images.append(attributes)
        self.addresses += [value for key, value in attributes.items() if key in ("src", "href", "action", "srcset")]
        assert not any(key.startswith("on") for key in attributes)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])), path)


@pytest.fixture
def data(tmp_path):
    """One real training case and one held-out case."""
    items = []
    rng = np.random.default_rng(0)
    for number, case in enumerate(("real0", "real1")):
        label = np.zeros((40, 30, 4), np.uint8)
        label[5:35, 5:25] = 1
        hu = np.where(label > 0, -850, 40) + rng.integers(-20, 20, label.shape)
        hu[:2] = -1000
        save(label, tmp_path / f"data/labels/{case}.nii.gz")
        save(hu.astype(np.int16), tmp_path / f"data/images/{case}.nii.gz")
        items.append(
            {"image": f"images/{case}.nii.gz", "label": f"labels/{case}.nii.gz", "fold": 1 - number, "patient": case}
        )
    write_json(tmp_path / "data/datalist.json", {"labels": LABELS, "training": items})
    return tmp_path / "data"


def augmentation(data, folder, hu):
    """Write what augment writes: a case with 90 voxels of fibrosis in slice 2, and two cases that are rejected."""
    real = arms.read_datalist(data / "datalist.json")
    label, image = (nib.load(data / f"{kind}s/real0.nii.gz").get_fdata() for kind in ("label", "image"))
    label, image = label.astype(np.uint8), image.astype(np.int16)
    for part, value in (((slice(10, 20), slice(10, 19), 2), 3), ((slice(10, 15), slice(10, 15), 1), 3)):
        label[part], image[part] = value, hu
    save(label, folder / "labels/real0_s000.nii.gz")
    save(image, folder / "images/real0_s000.nii.gz")
    new = {"image": "images/real0_s000.nii.gz", "label": "labels/real0_s000.nii.gz", "fold": -1, "patient": "real0"}
    items = [item | {"fold": 0 if item["patient"] == "real1" else -1} for item in real["training"]]
    content = {"labels": LABELS, "held_out_fold": 0, "fitted_on": {"masks": ["real0"]}}
    write_json(folder / "datalist.json", content | {"training": [*items, new | {"synthetic": True, "source": "real0"}]})
    lines = [
        {"case": "real0_s000", "tissues": ["fibrosis"], "accepted": True, "reason": ""},
        {
            "case": "real0_s001",
            "tissues": ["emphysema", "fibrosis"],
            "accepted": False,
            "reason": "emphysema: median -3.5 HU <b>",
        },
        {"case": "real0_s002", "tissues": ["emphysema"], "accepted": False, "reason": "emphysema: median 12 HU <b>"},
    ]
    common = {"source": "real0", "patient": "real0", "donors": [], "checkpoint_sha256": "abc123"}
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line | common) + "\n" for line in lines))


def comparison(data, output, wanted):
    """Write the runs of a comparison with known Dice for eight test patients, one of them with an evil name."""
    names = [EVIL, *(f"t{number}" for number in range(7))]
    settings = {"command": "compare", "datalist_sha256": "d" * 64, "iterations": 123, "overrides": {"device": "cpu"}}
    write_json(output / "run.json", settings | {"max_cases": None, "synthesis_overrides": {}})
    for seed in (0, 1):
        for arm in wanted:
            dice = {
                name: {
                    tissue: None
                    if tissue == "emphysema" or (tissue == "consolidation" and index > 1)
                    else 0.5 + 0.02 * index + 0.01 * seed + (GAIN[arm] if tissue == "fibrosis" else 0)
                    for tissue in LABELS
                    if tissue != "background"
                }
                for index, name in enumerate(names)
            }
            run = {
                "arm": arm, "fold": 0, "seed": seed, "iterations": 123, "training_items": 9,
                "synthetic_items": int(arm == "synthetic"),
                "train_patients": ["real0"], "test_patients": names, "fitted_on": {"segmenter": ["real0"]},
                "spacing_mm": [0.7, 0.7, -1], "seconds": 90.0, "versions": {"monai": "1.6.1"}, "dice": dice,
            }  # fmt: skip
            write_json(output / f"fold0/seed{seed}/{arm}/result.json", run)
    if "synthetic" in wanted:
        augmentation(data, output / "fold0/augment_synthetic", -300)
    if "copy_paste" in wanted:
        augmentation(data, output / "fold0/augment_copy_paste", -100)
    results.collect(output, arms.read_datalist(data / "datalist.json"))
    return output


@pytest.fixture
def finished(data, tmp_path):
    return comparison(data, tmp_path / "cmp", list(GAIN))


def test_the_page_is_complete_and_needs_nothing_from_outside(finished, capsys):
    report(finished)
    text = (finished / "report.html").read_text()
    page = Page(text)
    assert not page.open  # every element is closed
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert not re.search(r"https?:|@import|url\(", text)
    assert len(page.images) >= 1 + 4 + 5  # forest, four tissues with Dice, five panels of fibrosis
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    for image in page.images:
        assert len(image["alt"]) > 10
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 100
        assert len(np.unique(np.asarray(picture))) > 10  # something is drawn
    for expected in (
        "Research use only, not for clinical use",
        "123 optimizer steps",
        "8 real\npatients",
        "too few patients (2)",
        "−1350 to 150 HU",
        "+0.250",
        "abc123",
        "d" * 64,
        "monai 1.6.1",
        '{"device": "cpu"}',
        "real0_s000, slice 2, painted into real0",
        "90 voxels of fibrosis",
        "Fewer than three seeds",
    ):
        assert expected in page.text, expected
    assert "max cases" not in page.text
    assert page.text.count("was accepted, so there it equals real only") == 1  # copy-paste has no case here
    assert "no case of the arm copy-paste was accepted" in page.text
    assert str(finished / "report.html") in capsys.readouterr().out


def test_names_from_outside_are_escaped(finished):
    report(finished)
    text = (finished / "report.html").read_text()
    assert "<script>" not in text and "HU <b>" not in text
    assert EVIL in Page(text).text and "emphysema: median … HU <b> (2)" in Page(text).text


def test_the_answer_says_what_the_verdicts_say(finished):
    rows = read_json(finished / "summary.json")["rows"]
    sentences = dict(answers(rows, [name for name in LABELS if name not in ("background", "healthy")]))
    assert list(sentences) == ["synthetic", "oversampled", "copy_paste"]  # the question comes first
    few = "too few patients to tell for emphysema and consolidation."
    assert sentences["synthetic"] == f"gain for fibrosis (+0.250); no gain for ground glass; {few}"
    assert sentences["oversampled"] == f"loss for fibrosis (−0.200); no gain for ground glass; {few}"
    assert sentences["copy_paste"] == f"no gain for ground glass and fibrosis; {few}"


def test_the_answer_tells_what_a_gain_has_cost_healthy_lung():
    verdicts = {"healthy": ("loss", -0.016), "emphysema": ("gain", 0.058)}
    rows = [{"tissue": t, "arm": "synthetic", "verdict": v, "difference": d} for t, (v, d) in verdicts.items()]
    told = "gain for emphysema (+0.058); loss for healthy lung (−0.016)."
    assert answers(rows, ["emphysema"]) == [("synthetic", told)]
    rows[0] |= {"verdict": "gain", "difference": 0.01}
    assert answers(rows, ["emphysema"]) == [("synthetic", "gain for emphysema (+0.058).")]


def test_a_comparison_without_synthetic_arms_or_with_real_alone_has_a_report_too(data, tmp_path):
    report(comparison(data, tmp_path / "two", ["real", "oversampled"]))
    text = Page((tmp_path / "two/report.html").read_text()).text
    assert "loss for fibrosis" in text and "looks like" not in text and "Accepted" not in text
    report(comparison(data, tmp_path / "one", ["real"]), tmp_path / "elsewhere/page.html")
    assert "nothing is compared yet" in Page((tmp_path / "elsewhere/page.html").read_text()).text
    assert not (tmp_path / "one/report.html").exists()


def test_the_same_comparison_gives_the_same_page(finished, tmp_path):
    report(finished, tmp_path / "a.html")
    report(finished, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_acceptance_counts_every_tissue_and_joins_reasons_that_differ_in_figures_only(finished):
    rows = [row for row in acceptance(augmented_folders(finished)) if row["method"] == "painted"]
    assert [(row["tissue"], row["cases"], row["accepted"]) for row in rows] == [("fibrosis", 2, 1), ("emphysema", 2, 0)]
    assert rows[1]["reasons"] == "emphysema: median … HU <b> (2)"


def test_the_slice_with_most_painted_voxels_is_shown_and_the_zoom_holds_it(finished):
    folder = finished / "fold0/augment_synthetic"
    manifest = arms.read_manifest(folder / "manifest.jsonl")
    (example,) = pictures.examples(folder, manifest, finished / "fold0/augment_copy_paste")
    assert (example.tissue, example.slice, example.voxels, example.source) == ("fibrosis", 2, 90, "real0")
    assert [title for title, _ in example.panels][:2] == ["real", "painted"]
    drawn = {title: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float) for title, data in example.panels}
    middle = {title: image[tuple(size // 2 for size in image.shape[:2])] for title, image in drawn.items()}
    for title, hu in (("real", -850), ("painted", -300), ("copy-paste, same map", -100)):
        assert middle[title] == pytest.approx((hu + 1350) / 1500 * 255, abs=6)  # the lung window, as stated
    outlined = drawn["painted, with target map"]
    assert (np.abs(outlined - [230, 159, 0]).max(axis=-1) < 12).sum() > 50  # fibrosis is orange everywhere
    assert len(pictures.examples(folder, manifest)[0].panels) == 4


def test_the_patients_right_is_on_the_left_and_the_front_is_up(monkeypatch):
    hu = np.full((20, 20), -1350.0)
    hu[15:, 15:] = 150  # to the patient's right (RAS: larger x) and front
    from tools.figures import ct_slice

    image = np.asarray(Image.open(io.BytesIO(ct_slice(hu, (1.0, 1.0)))).convert("L"))
    quarter = image.shape[0] // 8
    assert image[:quarter, :quarter].mean() > 250 and image[-quarter:].mean() < 5 and image[:, -quarter:].mean() < 5


def test_a_folder_that_holds_no_finished_comparison_is_refused(finished, tmp_path):
    with pytest.raises(InputError, match="absent is not a folder"):
        report(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no summary.json; run compare first"):
        report(tmp_path / "empty")
    with pytest.raises(InputError, match="is a folder; name an HTML file"):
        report(finished, tmp_path / "empty")
    manifest = finished / "fold0/augment_synthetic/manifest.jsonl"
    text = manifest.read_text()
    manifest.write_text(text.replace("real0_s000", "lost"))
    with pytest.raises(InputError, match="accepts lost made of real0, but the datalist lacks it"):
        report(finished)
    manifest.write_text(text)
    summary = read_json(finished / "summary.json")
    write_json(finished / "summary.json", {key: value for key, value in summary.items() if key != "rows"})
    with pytest.raises(InputError, match="summary.json lacks rows"):
        report(finished)
    write_json(finished / "summary.json", summary)
    with open(finished / "results.csv", "a", newline="") as stream:
        csv.writer(stream).writerow([0, 0, "real", "t1", "fibrosis", "oops"])
    with pytest.raises(InputError, match="results.csv is damaged.*oops"):
        report(finished)
    (finished / "summary.json").unlink()
    with pytest.raises(InputError, match="begun and not finished"):
        report(finished)
