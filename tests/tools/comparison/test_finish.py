"""The last step: which settings and cases the model of an arm is trained with, what is told of it, what is refused."""

import shutil

import pytest

from tests.tools.fakes.standin import install, twelve_patients
from tools.bundles import BUNDLES
from tools.comparison import compare
from tools.comparison import finish as module
from tools.comparison.finish import finish
from tools.data.datalist import read_datalist
from tools.io.files import InputError, read_json, write_json
from tools.serving.bundle_check import stray_problems
from tools.serving.verdict import tell_verdict

pytestmark = pytest.mark.slow  # a comparison with stand-ins takes seconds


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A finished comparison of twelve patients, and what finish asks of bundles and package, by name."""
    standin, asked = install(monkeypatch), {}
    datalist = twelve_patients(tmp_path, folds=3)
    given = {"arms": "real,oversampled,copy_paste,cbmat,cbmat_filter", "seeds": (0, 1), "overrides": {"batch_size": 4}}
    compare.compare(datalist, tmp_path / "out", iterations=120, **given)

    def augment(datalist, fold, output, method, **more):
        asked["augment"] = {"fold": fold, "method": method, **more}
        standin.augment(
            datalist, fold, output, method, **{"segmenter": None, "overrides": {}, "synthesizer": None} | more
        )

    def run_bundle(bundle, configs, overrides, log):
        asked["training"] = overrides | {"configs": configs}
        asked["items"] = read_datalist(log.parent / "datalist.json")["training"]
        (log.parent / "model.pt").write_text("weights")

    def package(bundle, output, weights, targets, data_license):
        asked["package"] = bundle
        shutil.copytree(BUNDLES / bundle, output, ignore=shutil.ignore_patterns("models"))
        (output / "models").mkdir()
        tell_verdict(output, read_json(weights.with_name("card.json")))

    for name, function in (("augment", augment), ("run_bundle", run_bundle), ("package", package)):
        monkeypatch.setattr(module, name, function)
    return tmp_path / "out", datalist, asked


def test_a_painted_arm_is_trained_on_all_patients_as_in_the_comparison_and_its_verdict_goes_along(world, tmp_path):
    comparison, datalist, asked = world
    finish(comparison, "cbmat_filter", datalist, tmp_path / "model", seed=3, device="cpu")
    painting, training = asked["augment"], asked["training"]
    assert painting["fold"] is None and painting["seed"] == 3 and painting["method"] == "cbmat"
    assert painting["segmenter"] == comparison / "fold0/seed0/real/model.pt"
    compared = read_json(comparison / "run.json")
    assert painting["steps"] == compared["steps"] and painting["overrides"] == {"device": "cpu"}
    assert (training["max_epochs"] * training["epoch_length"], training["batch_size"]) == (120, 4)
    assert training["extra_ratio"] == 1 and training["fold"] == 0 and training["configs"] == ["train.json"]
    items = asked["items"]
    assert {item.patient for item in items if item.fold == 1} == {f"p{number:02d}" for number in range(12)}
    assert sum(item.fold == -1 for item in items) == 1 and sum(item.fold == 0 for item in items) == 1
    card = read_json(tmp_path / "model/segmenter/card.json")
    assert {row["patient"] for row in card["cases"]} == {f"p{number:02d}" for number in range(12)}
    assert set(card["fitted_on"]) == {"synthesizer", "quality gate", "tissue maps and their frequencies"}
    told = (tmp_path / "model/package/docs/comparison.md").read_text()
    assert "| fibrosis | cbmat_filter | 12 |" in told and "| gain |" in told
    metadata = read_json(tmp_path / "model/package/configs/metadata.json")
    assert metadata["data_source"].startswith("12 labelled patients, arm cbmat_filter")
    assert 0.5 < metadata["eval_metrics"]["dice_fibrosis"] < 0.8
    assert not stray_problems(tmp_path / "model/package")  # package refuses a file that it does not know
    for path in (tmp_path / "model/package").rglob("*.*"):
        assert path.suffix not in (".md", ".json", ".yaml", ".txt") or "p07" not in path.read_text(), (
            path
        )  # no patient is named


def test_maps_follow_what_the_comparisons_segmenters_found_hard_or_took_for_another(world, tmp_path):
    comparison, datalist, asked = world
    summary = read_json(comparison / "summary.json")
    summary["settings"] |= {"mixture": "joint", "by_error": True, "look_alikes": True}
    write_json(comparison / "summary.json", summary)
    finish(comparison, "cbmat", datalist, tmp_path / "model")
    plateau = comparison / "fold0/plateau/plateau.json"
    assert (asked["augment"]["dice"], asked["augment"]["look_alikes"]) == (plateau, plateau)


@pytest.mark.parametrize(("arm", "told"), [("cbmat", {"candidates", "context"}), ("copy_paste", {"context"})])
def test_what_only_painting_knows_is_not_asked_of_copy_paste(world, tmp_path, arm, told):
    comparison, datalist, asked = world
    summary = read_json(comparison / "summary.json")
    summary["settings"] |= {"candidates": 4, "context": True}
    write_json(comparison / "summary.json", summary)
    finish(comparison, arm, datalist, tmp_path / "model")
    assert {"candidates", "context"} & set(asked["augment"]) == told


def test_an_arm_none_of_whose_cases_was_accepted_is_not_finished(world, tmp_path, monkeypatch):
    comparison, datalist, asked = world
    augment = module.augment

    def rejecting(datalist, fold, output, method, **more):
        augment(datalist, fold, output, method, **more)
        listed = read_json(output / "datalist.json")
        listed["training"] = [item for item in listed["training"] if item["fold"] >= 0]
        write_json(output / "datalist.json", listed)

    monkeypatch.setattr(module, "augment", rejecting)
    with pytest.raises(InputError, match="none of the cases of .*augment was accepted, so cbmat_filter would be real"):
        finish(comparison, "cbmat_filter", datalist, tmp_path / "model")
    assert "training" not in asked and "package" not in asked


def test_real_and_rebalanced_arms_need_no_painting_and_a_second_start_trains_nothing(world, tmp_path):
    comparison, datalist, asked = world
    finish(comparison, "oversampled", datalist, tmp_path / "model")
    assert "augment" not in asked and asked["training"]["extra_ratio"] == 0
    consolidation = [item for item in asked["items"] if item.patient in ("p00", "p01")]
    assert len(consolidation) > 5  # two patients with two cases each, repeated
    asked.clear()
    finish(comparison, "oversampled", datalist, tmp_path / "model")
    assert not asked
    finish(comparison, "real", datalist, tmp_path / "other")
    assert "training" in asked


def test_what_has_no_verdict_or_is_not_the_comparisons_own_is_refused(world, tmp_path):
    comparison, datalist, _ = world
    output = tmp_path / "model"

    def refused(message, **changes):
        given = {"comparison": comparison, "arm": "cbmat", "datalist": datalist, "output": output} | changes
        with pytest.raises(InputError, match=message):
            finish(**given)
        assert not output.exists()

    refused("holds no summary.json; let compare end first", comparison=tmp_path)
    refused("has no arm 'konz'; it has real, oversampled, copy_paste, cbmat", arm="konz")
    other = tmp_path / "data/other.json"
    write_json(other, read_json(datalist) | {"name": "another"})
    refused("is not the datalist of", datalist=other)
    refused("--synthesizer: .* was made without such weights", synthesizer=comparison / "run.json")
    summary = read_json(comparison / "summary.json")
    with_weights = summary["settings"] | {"synthesizer_sha256": "0" * 64}
    write_json(comparison / "summary.json", summary | {"settings": with_weights})
    refused("--synthesizer is needed: the weights that .* used for arm cbmat, or shipped")
    refused("--synthesizer: .* used other weights than the ones given for arm", synthesizer=comparison / "run.json")
    write_json(comparison / "summary.json", summary)
    summary = read_json(comparison / "summary.json")
    lost = [run for run in summary["runs"] if (run["arm"], run["fold"], run["seed"]) != ("cbmat", 2, 1)]
    write_json(comparison / "summary.json", summary | {"runs": lost})
    refused("lacks runs .fold 2, seed 1, arm cbmat.; start compare again")
    rows = [row | {"verdict": "one seed only"} if "verdict" in row else row for row in summary["rows"]]
    write_json(comparison / "summary.json", summary | {"rows": rows})
    refused("has no verdict on arm cbmat; a verdict needs three folds, two seeds and five patients")
