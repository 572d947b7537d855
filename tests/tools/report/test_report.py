"""The report: complete, self-contained, escaped, and honest about what was not run."""

import base64
import html.parser
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.fakes.comparisons import CHECKPOINT, EVIL, GAIN, LABELS, PATIENTS, comparison, real_data
from tools.comparison.results import RESULT_COLUMNS
from tools.io.files import InputError, read_json, write_json
from tools.report import pictures, sweeps, tables
from tools.report.report import answers, load, overall, report

TISSUES = [name for name in LABELS if name != "background"]
PATHOLOGICAL = [name for name in LABELS if name not in ("background", "healthy")]


class Page(html.parser.HTMLParser):
    """Collects tags, images, links, ids and visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.addresses, self.ids, self.text, self.open = [], [], [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        if tag == "img":
            self.images.append(attributes)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.addresses += [value for key, value in attributes.items() if key in ("src", "href", "action", "srcset")]
        assert not any(key.startswith("on") for key in attributes)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def page_of(path):
    """Return the page with single spaces in its text."""
    page = Page(path.read_text())
    page.text = " ".join(page.text.split())
    return page


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return real_data(tmp_path_factory.mktemp("report") / "data")


@pytest.fixture(scope="module")
def made(data):
    """A finished comparison beside its data; not to be changed."""
    return comparison(data, data.with_name("made"), list(GAIN))


@pytest.fixture(scope="module")
def drawn(made):
    """Its page."""
    report(made)
    return made / "report.html"


@pytest.fixture
def finished(made, tmp_path):
    """A copy to change, in a folder of its own beside the data."""
    return Path(shutil.copytree(made, made.with_name(tmp_path.name)))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Three ratios, two shares of the patients and an external datalist; not to be changed."""
    folder = tmp_path_factory.mktemp("everything")
    wanted = [*GAIN, "cbmat_filter_x0.5", "cbmat_filter_x2"]
    return comparison(real_data(folder / "data"), folder / "all", wanted, (0, 1), (0.25, 1.0), external=True)


def check_alone(text):
    """Check that a page needs nothing from outside, every picture shows something, and every link leads somewhere."""
    page = Page(text)
    assert not page.open  # every element is closed
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"https?:|@import|url\(|src=[\"']?//|href=[\"']?//", text)
    assert len(page.ids) == len(set(page.ids))
    for address in page.addresses:
        assert address.startswith("data:image/png;base64,") or address[1:] in page.ids and address[0] == "#", address[
            :80
        ]
    for image in page.images:
        assert len(image["alt"]) > 10
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 100
        assert len(np.unique(np.asarray(picture))) > 10  # something is drawn
    return page


def test_the_page_is_complete_and_needs_nothing_from_outside(drawn):
    page = check_alone(drawn.read_text())
    # differences of all tissues, patients of the four with Dice; five panels of fibrosis and of the rejected case
    assert len(page.images) == 5 + 4 + 5 + 5
    page = page_of(drawn)
    for expected in (
        "Research use only, not for clinical use",
        "123 optimizer steps",
        "8 real patients that no stage had seen (4 folds, 2 seeds)",
        "too few patients (2)",
        "Too few test patients for a verdict: emphysema (0) and consolidation (2). Five is the least.",
        "−1350 to 150 HU",
        "+0.250",
        CHECKPOINT,
        "d" * 64,
        "monai 1.6.1",
        '{"device": "cpu"}',
        "Largest accepted case. real0_s000, slice 2, fold 0, painted into real0",
        "90 voxels of fibrosis",
        "Rejected: median -3.5 HU <b>. real0_s001",
        "Normalised surface Dice per tissue and arm",
        "Error of the volume fraction per tissue and arm",
        "HU distance, HU",
        "13.8",
        "odd measure",
        "distance to pleura",
        "In folds 0, 1, 2 and 3 the arm “copy-paste” had no synthetic case: there it equals real only.",
    ):
        assert expected in page.text, expected
    assert "max cases" not in page.text and "external" not in page.text and "learning" not in page.ids


@pytest.mark.slow
def test_curve_ratios_and_external_patients_have_their_place_where_there_are_any(everything):
    report(everything)
    page = check_alone((everything / "report.html").read_text())
    assert {"learning", "ratio", "external"} <= set(page.ids)
    assert len(page.images) == 5 + 4 + 5 + 5 + 4 + 4  # and the learning curve and the ratios
    text = page_of(everything / "report.html").text
    assert "Real only, with 100 % of the training patients, has a mean Dice of 0." in text
    assert "painted, CBMAT, filtered, ratio 0.5" in text and "Dice of external patients per tissue and arm" in text
    summary, _ = load(everything)
    learning = sweeps.learning_curve(summary["curve"], PATHOLOGICAL)
    assert [title for title, _ in learning["figures"]] == [
        "mean of the pathological tissues", "ground glass", "fibrosis", "consolidation"
    ]  # fmt: skip
    assert [arm for arm, _, _ in learning["legend"]][0] == "real"
    assert {arm for arm, _, _ in sweeps.ratio_sweep(summary["rows"], PATHOLOGICAL)["legend"]} == {"cbmat_filter"}


def test_the_learning_curve_says_how_few_patients_do_as_well():
    def rows(means):
        return [
            {"tissue": "fibrosis", "arm": arm, "fraction": share, "mean": mean, "patients": 9, "mean_per_seed": {}}
            for arm, values in means.items()
            for share, mean in zip((0.1, 0.25, 1.0), values)
        ]

    told = sweeps.learning_curve(rows({"real": [0.2, 0.3, 0.4], "cbmat": [0.3, 0.45, 0.5]}), ["fibrosis"])["replaced"]
    assert told.endswith("has a mean Dice of 0.400 over the tissues. Painted, CBMAT reaches 0.450 with 25 % of them.")
    told = sweeps.learning_curve(rows({"real": [0.2, 0.3, 0.4], "cbmat": [0.3, 0.39, 0.5]}), ["fibrosis"])["replaced"]
    assert told.endswith("Painted, CBMAT reaches it with none of the smaller shares that were tried.")
    assert sweeps.learning_curve([], ["fibrosis"]) is None


def test_names_from_outside_are_escaped(drawn):
    text = drawn.read_text()
    assert "<script>" not in text and "HU <b>" not in text
    assert EVIL in Page(text).text and "median … HU <b> (2)" in Page(text).text


def test_the_answer_says_what_the_verdicts_say(made):
    rows = read_json(made / "summary.json")["rows"]
    sentences = dict(answers(rows, PATHOLOGICAL))
    assert list(sentences) == ["cbmat_filter", "oversampled", "copy_paste"]  # the question comes first
    few = "too few patients to tell for emphysema and consolidation."
    assert (
        sentences["cbmat_filter"]
        == f"gain for fibrosis (+0.250) and the mean of the tissues (+0.062); no gain for ground glass; {few}"
    )
    assert (
        sentences["oversampled"]
        == f"loss for fibrosis (−0.200) and the mean of the tissues (−0.050); no gain for ground glass; {few}"
    )
    assert sentences["copy_paste"] == f"no gain for ground glass, fibrosis and the mean of the tissues; {few}"


def test_the_answer_tells_what_a_gain_has_cost_healthy_lung():
    verdicts = {"healthy": ("loss", -0.016), "emphysema": ("gain", 0.058)}
    rows = [{"tissue": t, "arm": "cbmat", "verdict": v, "difference": d} for t, (v, d) in verdicts.items()]
    told = "gain for emphysema (+0.058); loss for healthy lung (−0.016)."
    assert answers(rows, ["emphysema"]) == [("cbmat", told)]
    rows[0] |= {"verdict": "gain", "difference": 0.01}
    assert answers(rows, ["emphysema"]) == [("cbmat", "gain for emphysema (+0.058).")]


def test_the_overall_answer_is_the_mean_over_tissues_of_the_best_arms(made):
    summary, records = load(made)
    found = overall(records, summary["rows"], TISSUES)
    assert (found["painted"], found["rival"], found["pairs"]) == ("cbmat_filter", "copy_paste", 2)
    means = [r["mean"] for r in summary["rows"] if r["arm"] == "cbmat_filter" and r["tissue"] in PATHOLOGICAL]
    assert found["means"]["cbmat_filter"] == pytest.approx(np.mean(means))
    assert found["difference"] == pytest.approx(found["means"]["cbmat_filter"] - found["means"]["copy_paste"])
    low, high = found["interval"]
    assert 0 < low < found["difference"] < high and found["verdict"] == "gain"


@pytest.mark.usefixtures("without_ink")
def test_no_gain_over_the_free_rivals_is_said_when_the_interval_holds_zero(finished):
    path = finished / "results.csv"
    rng = np.random.default_rng(3)
    lines = []
    for line in path.read_text().splitlines():
        cells = line.split(",")
        at = RESULT_COLUMNS.index("dice_all")
        if "copy_paste" in line and "fibrosis" in line:  # the rival is as good as painting, but for luck
            cells[at] = str(float(cells[at]) + 0.245 + rng.normal(0, 0.05))
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n")
    report(finished)
    summary, records = load(finished)
    assert overall(records, summary["rows"], TISSUES)["verdict"] == "no gain"
    assert "No gain from painting over the free rivals: the best painted arm" in page_of(finished / "report.html").text


@pytest.mark.usefixtures("without_ink")
def test_one_seed_gives_no_verdict_and_says_so(data, tmp_path, capsys):
    report(comparison(data, tmp_path / "one", ["real", "copy_paste", "cbmat_filter"], seeds=(0,)))
    assert str(tmp_path / "one/report.html") in capsys.readouterr().out
    text = page_of(tmp_path / "one/report.html").text
    assert "No verdict on painting, one seed only:" in text and "One seed only: every arm was trained once" in text
    assert (
        "one seed only, so no verdict for ground glass, fibrosis and the mean of the tissues" in text
        and "▲" not in text
    )


@pytest.mark.usefixtures("without_ink")
def test_a_comparison_without_painted_arms_or_with_real_alone_has_a_report_too(data, tmp_path):
    report(comparison(data, tmp_path / "two", ["real", "oversampled"]))
    text = page_of(tmp_path / "two/report.html").text
    assert "No painted arm was run" in text and "looks like" not in text and "Accepted" not in text
    assert "Loss for fibrosis (−0.200)" in text
    report(comparison(data, tmp_path / "one", ["real"]), tmp_path / "elsewhere/page.html")
    assert "nothing is compared yet" in page_of(tmp_path / "elsewhere/page.html").text
    assert not (tmp_path / "one/report.html").exists()
    report(comparison(data, tmp_path / "alone", ["real", "cbmat_filter"]))
    text = page_of(tmp_path / "alone/report.html").text
    assert "Painting gains over real cases alone" in text and "No free rival" in text


@pytest.mark.slow
def test_the_same_comparison_gives_the_same_page(finished, tmp_path):
    report(finished, tmp_path / "a.html")
    report(finished, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_acceptance_counts_every_tissue_and_joins_reasons_that_differ_in_figures_only(made):
    folders = tables.augmented_folders(made)
    rows = [row for row in tables.acceptance(folders, LABELS) if row["method"] == "painted, CBMAT"]
    assert [(row["tissue"], row["cases"], row["accepted"]) for row in rows] == [("fibrosis", 2, 1), ("emphysema", 2, 0)]
    assert rows[0]["reasons"] == "another tissue of the case (1)"
    assert rows[1]["reasons"] == "median … HU <b> (2)"
    by_fold = tables.acceptance(folders * 2, LABELS, by_fold=True)
    assert {row["fold"] for row in by_fold} == {"0"} and by_fold[0]["cases"] == 4


def test_the_quality_card_shows_the_floor_beside_the_mean_of_the_folds(finished):
    folders = tables.augmented_folders(finished)
    card = read_json(folders[0]["path"] / "quality.json")
    other = folders[0] | {"path": finished / "other", "fold": "1"}
    card["tissues"]["fibrosis"]["hu_wasserstein"] |= {"painted": 13.25, "floor": None}
    card["tissues"]["fibrosis"]["recall"] = {"painted": 0.7, "floor": 0.8}
    write_json(other["path"] / "quality.json", card)
    found = tables.quality([*folders, other])
    assert found["methods"] == ["painted, CBMAT", "copy-paste"]
    rows = {row["title"]: row for row in found["tissues"]["fibrosis"]}
    assert rows["HU distance"] == {"title": "HU distance", "unit": "HU", "floor": 13.75, "values": [12.75, 12.25]}
    assert rows["odd measure"]["values"] == [None, None] and rows["recall"]["values"] == [0.7, None]
    assert rows["cases"]["values"] == [2, 1] and rows["cases"]["floor"] == 7
    for damaged in ([1], {"fibrosis": {"painted": {"cases": 3}, "hu_wasserstein": 12.0}}):
        write_json(other["path"] / "quality.json", {"tissues": damaged})
        with pytest.raises(InputError, match="other/quality.json holds no tissues"):
            tables.quality([*folders, other])


@pytest.mark.usefixtures("without_ink")
def test_a_test_patient_that_a_stage_was_fitted_on_is_named(finished):
    summary = read_json(finished / "summary.json")
    summary["runs"][0]["fitted_on"]["synthesizer"] = ["real0", "t3"]
    write_json(finished / "summary.json", summary)
    (row,) = [row for row in tables.stage_table(summary["runs"]) if row["stage"] == "synthesizer"]
    assert (row["shared"], row["fitted"], row["test"]) == (["t3"], ["real0", "t3"], sorted(PATIENTS[0::4]))
    report(finished)
    assert '<strong class="loss">t3</strong>' in (finished / "report.html").read_text()


def examples_of(directory):
    folders = tables.augmented_folders(directory)
    return pictures.examples(folders[:1], folders[1:])


def test_the_slice_with_most_painted_voxels_is_shown_and_the_zoom_holds_it(finished):
    example, rejected = examples_of(finished)
    assert (example.tissue, example.slice, example.voxels, example.source) == ("fibrosis", 2, 90, "real0")
    assert (rejected.tissue, rejected.slice, rejected.why) == ("emphysema", 1, "rejected")
    assert rejected.reason == "median -3.5 HU <b>"
    assert [title for title, _ in example.panels][:2] == ["real", "painted"]
    drawn = {title: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float) for title, data in example.panels}
    middle = {title: image[tuple(size // 2 for size in image.shape[:2])] for title, image in drawn.items()}
    for title, hu in (("real", -850), ("painted", -300), ("copy-paste, same map", -100)):
        assert middle[title] == pytest.approx((hu + 1350) / 1500 * 255, abs=6)  # the lung window, as stated
    outlined = drawn["painted, target map outlined"]
    assert (np.abs(outlined - [230, 159, 0]).max(axis=-1) < 12).sum() > 50  # fibrosis is orange everywhere
    manifest = finished / "fold0/augment_copy_paste/manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"same"', '"another"'))
    assert len(examples_of(finished)[0].panels) == 4  # another target map is no comparison


def test_a_host_that_nobody_labelled_is_shown_beside_what_was_painted_into_it(finished):
    folder = finished / "fold0/augment_cbmat"
    for path in folder.glob("datalist*.json"):
        held = read_json(path)
        (real,) = (item for item in held["training"] if item["image"].endswith("real0.nii.gz"))
        for kind in ("images", "labels"):
            (folder / "hosts" / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(path.parent / real[kind[:-1]], folder / "hosts" / kind / "real0.nii.gz")
        held["training"].remove(real)
        write_json(path, held)
    example = examples_of(finished)[0]
    assert (example.source, example.voxels, example.panels[0][0]) == ("real0", 90, "real")


@pytest.mark.usefixtures("without_ink")
def test_a_folder_that_holds_no_finished_comparison_is_refused(finished, tmp_path):
    with pytest.raises(InputError, match="absent is not a folder"):
        report(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no summary.json; run compare first"):
        report(tmp_path / "empty")
    with pytest.raises(InputError, match="is a folder; name an HTML file"):
        report(finished, tmp_path / "empty")
    manifest = finished / "fold0/augment_cbmat/manifest.jsonl"
    text = manifest.read_text()
    manifest.write_text(text.replace("real0_s000", "lost"))
    with pytest.raises(InputError, match="accepts lost made of real0, but the datalist lacks it"):
        report(finished)
    manifest.write_text(text)
    summary = read_json(finished / "summary.json")
    write_json(finished / "summary.json", {key: value for key, value in summary.items() if key != "rows"})
    with pytest.raises(InputError, match="summary.json lacks rows"):
        report(finished)
    for schema, age in ((1, "an older"), (4, "another"), ("x", "another")):
        write_json(finished / "summary.json", summary | {"schema": schema})
        with pytest.raises(InputError, match=f"made by {age} version .schema {schema}, not 3.; run compare again"):
            report(finished)
    write_json(finished / "summary.json", {key: value for key, value in summary.items() if key != "schema"})
    with pytest.raises(InputError, match="made by an older version .schema 1, not 3.; run compare again"):
        report(finished)
    write_json(finished / "summary.json", summary)
    with open(finished / "results.csv", "a") as stream:
        stream.write("own,1.0,0,0,real,t1,fibrosis,oops,,,,,,\n")
    with pytest.raises(InputError, match="results.csv is damaged.*oops"):
        report(finished)
    (finished / "summary.json").unlink()
    with pytest.raises(InputError, match="begun and not finished"):
        report(finished)
