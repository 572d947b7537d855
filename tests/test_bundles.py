"""What holds in both bundles: one layout and order of configs, and the files that both must have, letter by letter."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser

from tests.packed import WIDTH, laid_out

ROOT = Path(__file__).resolve().parents[1] / "bundles"
BUNDLES = ("difflung_synthesis", "lung_tissue_seg")
CONFIGS = sorted([*ROOT.glob("*/configs/*.json"), *ROOT.glob("*/configs/*.yaml")])
SCRIPTS = sorted(ROOT.glob("*/scripts/*.py"))
BOTH = sorted(set.intersection(*({p.name for p in CONFIGS if p.parts[-3] == name} for name in BUNDLES)))
SAME_FILES = (
    *("LICENSE", "configs/logging.conf", "configs/multi_gpu_evaluate.json"),
    *("scripts/batch.py", "scripts/dicom.py", "scripts/loading.py", "scripts/seeded_loader.py"),
    *("scripts/training_state.py", "scripts/volumes.py", "scripts/weight_average.py"),
)
SAME_CODE = {  # name to the file of either bundle
    "NetworkAndAverage": ("federated.py", "federated.py"),
    "connect": ("triton_network.py", "triton_network.py"),
    "_gathered": ("quality.py", "scores.py"),
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())  # JSON is YAML


def entries(config, place: str = ""):
    """Yield every dict and string of a config with its place."""
    if isinstance(config, dict | str):
        yield place, config
    pairs = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in pairs:
        yield from entries(value, f"{place}::{key}" if place else str(key))


def orders(one: dict, other: dict, place: str = ""):
    """Yield the keys that two configs share, in the order of either, at each place that both have."""
    yield place, [key for key in one if key in other], [key for key in other if key in one]
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            yield from orders(one[key], other[key], f"{place}::{key}")


def test_there_are_configs_to_look_at():
    assert len(CONFIGS) > 25 and len(SCRIPTS) > 35
    assert {"train.json", "inference.json", "evaluate.json", "multi_gpu_train.json", "federated.yaml"} < set(BOTH)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_configs_are_laid_out_alike(path):
    """To lay a JSON file out: python tests/packed.py FILE."""
    text = path.read_text()
    assert path.suffix == ".yaml" or text == laid_out(text)
    if path.name != "metadata.json":  # whose sentences the format wants in one string each
        assert [line for line in text.splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize("name", BOTH)
def test_ids_that_both_bundles_have_stand_in_one_order(name):
    one, other = (read(ROOT / bundle / "configs" / name) for bundle in BUNDLES)
    for place, first, second in orders(one, other):
        assert first == second, place


def test_the_multi_gpu_overlays_set_the_same_ids():
    one, other = (read(ROOT / bundle / "configs/multi_gpu_train.json") for bundle in BUNDLES)
    deals_cases = {"train::sampler", "train::dataloader::sampler", "train::dataloader::shuffle"}
    assert one.keys() - other.keys() == deals_cases  # the segmenter's own sampler draws in each process
    assert {key: one[key] for key in other} == other


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize(("device", "chosen"), [("$torch.device('cuda', @local_rank)", [1]), ("cpu", [])])
def test_each_process_chooses_its_gpu_once_all_have_met(bundle, device, chosen, monkeypatch):
    found, started = [], []
    monkeypatch.setattr("torch.cuda.set_device", lambda device: found.append(device.index))
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend: started.append(backend))
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("multi_gpu_train", "multi_gpu_evaluate"):
        parser = ConfigParser()
        parser.read_config([str(ROOT / bundle / f"configs/{part}.json") for part in ("train", name)])
        parser["device"], parser["seed"] = device, 5
        for number in (0, 1):
            parser.get_parsed_content(f"initialize::{number}")
        assert parser.get_parsed_content("rank") == 3
    assert found == chosen * 2 and started == ["nccl" if chosen else "gloo"] * 2
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)  # by a program that runs the bundle
    parser["device"] = device
    parser.parse(reset=True)
    assert parser.get_parsed_content("initialize::0") is None and len(started) == 2


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_expressions_have_no_side_effects_and_handlers_have_names(path):
    """But in the lists that run: what ``initialize``, ``run`` and ``finalize`` hold is there for its effect."""
    hidden = re.compile(r"sys\.exit|\bor\b|\band\b|setattr|\bset_\w+\(|\b(open|load|init_\w+)\(")
    for place, entry in entries(read(path)):
        if isinstance(entry, str) and entry.startswith("$") and not place.startswith("initialize"):
            assert not hidden.search(entry), f"{place}: {entry}"
        if isinstance(entry, str) and place.startswith("initialize::"):
            assert not re.search(r"\b(or|and|if)\b", entry), f"{place}: {entry}"
        if isinstance(entry, dict):
            assert not [key for key in entry if re.search(r"::\d+(::|$)", str(key))], "addressed by its number"
            assert entry.get("_target_") != "typing.cast" or "typing.cast returns" in entry["_desc_"], place


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_newest_version_is_told(bundle):
    metadata = read(ROOT / bundle / "configs/metadata.json")
    assert next(iter(metadata["changelog"])) == metadata["version"]
    assert all(int(part) < 10 for part in metadata["version"].split("."))


@pytest.mark.parametrize("name", SAME_FILES)
def test_what_both_bundles_need_is_the_same_file_in_both(name):
    """Each bundle is shipped alone, so it holds what it needs; what the file does is tested once."""
    one, other = (ROOT / bundle / name for bundle in BUNDLES)
    assert one.read_bytes() == other.read_bytes()


def source(path: Path, name: str) -> str:
    text = path.read_text()
    (found,) = (part for part in ast.walk(ast.parse(text)) if getattr(part, "name", "") == name)
    return ast.get_source_segment(text, found)


@pytest.mark.parametrize("name", SAME_CODE)
def test_what_both_bundles_need_is_the_same_code_in_both(name):
    one, other = (source(ROOT / bundle / "scripts" / file, name) for bundle, file in zip(BUNDLES, SAME_CODE[name]))
    assert one == other


def test_nothing_else_stands_in_both_bundles():
    """Six lines that both bundles share are meant to be shared, and then held equal above."""
    runs = []
    for bundle, files in zip(BUNDLES, zip(*SAME_CODE.values())):
        twins = dict(zip(files, SAME_CODE))
        found = set()
        for path in (ROOT / bundle / "scripts").glob("*.py"):
            text = "" if f"scripts/{path.name}" in SAME_FILES else path.read_text()
            text = text.replace(source(path, twins[path.name]), "") if path.name in twins else text
            lines = [line.strip() for line in text.splitlines()]
            lines = [line for line in lines if line and not line.startswith(("import ", "from "))]
            found |= {tuple(lines[start : start + 6]) for start in range(len(lines) - 5)}
        assert len(found) > 500
        runs.append(found)
    assert runs[0] & runs[1] == set()


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_arguments_are_told_in_whole_phrases(path):
    """Each begins with a capital letter and ends with a full stop, as "Seed for all random draws." does."""
    for part in ast.walk(ast.parse(path.read_text())):
        told = ast.get_docstring(part) if isinstance(part, ast.FunctionDef | ast.ClassDef) else None
        for section in re.findall(r"(?:Args|Attributes):\n((?:    .*\n?)+)", inspect.cleandoc(told or "")):
            for phrase in re.split(r"^    (?=\S)", section, flags=re.MULTILINE)[1:]:
                assert re.match(r"\w+: [A-Z]", phrase) and phrase.rstrip().endswith("."), phrase
