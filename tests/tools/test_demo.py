"""The demo's chain on a tiny phantom, with stand-ins for the two trainings."""

import dataclasses
import functools
import json
import sys
import types

import pytest

from tools import demo
from tools.bundles import BUNDLES
from tools.comparison import results
from tools.data.datalist import read_datalist, split
from tools.data.provenance import GATE_CARD, MAPS_CARD, SYNTHESIZER_CARD, cases_read
from tools.io.files import InputError, read_json, sha256, write_json
from tools.io.volume import case_name
from tools.tissues import tissue_labels

pytestmark = pytest.mark.slow  # the file takes seconds: make check leaves it to make test

TISSUES = [name for name in tissue_labels() if name != "background"]


def note(calls, name, ct, output, **_):
    calls.append((name, ct.name))
    output.mkdir()


@pytest.fixture
def calls(monkeypatch):
    """A demo of six small patients whose bundles do not run; returns what was asked of them."""
    calls = []

    def run_bundle(bundle, config_files, overrides, log, variables=None):
        calls.append((log.parent.name, overrides["seed"], overrides["max_epochs"] * overrides["epoch_length"]))
        test = [item for item in read_json(overrides["datalist"])["training"] if item["fold"] == overrides["fold"]]
        lines = ["case,tissue,state,dice,surface_dice,percent_error,ml_predicted"]
        lines += [f"{case_name(item['label'])},{tissue},present,0.5,0.5,1,2" for item in test for tissue in TISSUES]
        (log.parent / results.SCORES_FILE).write_text("\n".join(lines))

    def augment(datalist, fold, output, method, **settings):
        own = settings["synthesizer"] and sha256(settings["synthesizer"])
        calls.append(("augment", method, settings["seed"], settings["max_cases"], own))
        train, test = split(read_datalist(datalist), fold)
        new = train[0].item() | {"synthetic": True, "source": train[0].name, "fold": -1, "made_by": method}
        content = {"labels": tissue_labels(), "held_out_fold": fold}
        for name in ("datalist_unfiltered.json", "datalist.json"):
            write_json(output / name, content | {"training": [*(case.item() for case in train + test), new]})
        for card in (SYNTHESIZER_CARD, MAPS_CARD, GATE_CARD):
            write_json(output / card, {"cases": cases_read(train)})
        line = {"case": "a", "source": new["source"], "tissues": ["fibrosis"], "accepted": False, "reason": "stand-in"}
        (output / "manifest.jsonl").write_text(json.dumps(line))

    bundle = types.SimpleNamespace(run_bundle=run_bundle, check_overrides=lambda *_: None)
    monkeypatch.setitem(sys.modules, "tools.workflows.run", bundle)
    monkeypatch.setitem(sys.modules, "tools.painting.augment", types.SimpleNamespace(augment=augment))
    for name in ("SHORT", "LONG"):
        small = dataclasses.replace(getattr(demo, name), patients=6, size=(64, 64, 4), iterations=7)
        monkeypatch.setattr(demo, name, small)
    for name in ("segment", "paint"):
        monkeypatch.setattr(demo, name, functools.partial(note, calls, name))
    return calls


@pytest.mark.usefixtures("without_ink")
@pytest.mark.parametrize("long", [False, True])
def test_the_chain_runs_through_says_how_long_it_took_and_is_not_repeated(calls, tmp_path, capsys, long):
    output, setting = tmp_path / "demo", demo.LONG if long else demo.SHORT
    demo.demo(output, seed=3, long=long)
    trained = [(arm, seed, 7) for seed in range(3, 3 + setting.seeds) for arm in setting.arms]
    first, second, *others = calls
    assert (first, second) == (("segment", "phantom000.nii.gz"), ("paint", "phantom000.nii.gz"))
    assert [call for call in others if call[0] != "augment"] == trained
    own = None if long else sha256(BUNDLES / "difflung_synthesis/models/model.pt")
    assert {call[1:] for call in others if call[0] == "augment"} == {
        ("cbmat", 3, setting.new_cases, own),
        ("copy_paste", 3, setting.new_cases, own),
    }
    printed = capsys.readouterr().out
    assert printed.count("] took") == 6 and str(output / "report.html") in printed.splitlines()[-2]
    assert "Does painted lung tissue" in (output / "report.html").read_text()
    before, page = len(calls), (output / "report.html").read_bytes()
    demo.demo(output, seed=3, long=long)
    assert len(calls) == before and (output / "report.html").read_bytes() == page


@pytest.mark.usefixtures("without_ink")
def test_a_demo_killed_after_the_phantom_goes_on(calls, tmp_path, monkeypatch):
    def killed(**_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(demo, "dataset", killed)
        with pytest.raises(KeyboardInterrupt):
            demo.demo(tmp_path / "demo")
    with monkeypatch.context() as context:
        context.setattr(demo, "phantom", lambda **_: pytest.fail("the phantom was drawn twice"))
        demo.demo(tmp_path / "demo")
    assert (tmp_path / "demo/report.html").is_file()


def test_a_folder_with_another_demo_or_other_things_is_refused(calls, tmp_path):
    demo.open_run(tmp_path / "demo", {"command": "demo", "seed": 1})
    with pytest.raises(InputError, match="seed was 1, now 0"):
        demo.demo(tmp_path / "demo")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="full is not empty"):
        demo.demo(tmp_path / "full")
    assert not calls
