"""What the pages say exists: commands, flags, config ids, files."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from tools.__main__ import command_function

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("bundles/*/docs/README.md"))]
SERVING = ROOT / "docs/serving.md"


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page's shell blocks, continued lines joined, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


ALL = [(page, command) for page in PAGES for command in commands(page)]


def test_pages_hold_commands():
    assert len(PAGES) == 3
    assert len(ALL) > 15


@pytest.mark.parametrize("words", [c for _, c in ALL if c[:3] == ["python", "-m", "tools"]], ids=" ".join)
def test_tools_command_of_a_page_exists_with_its_flags(words):
    function = command_function(words[3])
    flags = [word[2:].split("=")[0] for word in words[4:] if word.startswith("--")]
    assert set(flags) <= set(inspect.signature(function).parameters)


def bundle_runs():
    for page, words in ALL:
        if "monai.bundle" in words and "run" in words and "--config_file" in words:
            yield pytest.param(page, words, id=" ".join(words[-8:]))


@pytest.mark.parametrize(("page", "words"), bundle_runs())
def test_bundle_run_of_a_page_names_configs_and_ids_that_exist(page, words):
    flags = dict(zip(words, words[1:]))
    root = ROOT / flags["--bundle_root"] if "--bundle_root" in flags else page.parents[1]
    names = re.findall(r"configs/(\w+\.\w+)", flags["--config_file"])
    assert names
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / name) for name in names])
    for flag in (word[2:] for word in words if word.startswith("--")):
        if flag not in ("config_file", "bundle_root", "standalone", "nproc_per_node"):
            parser[flag]  # raises KeyError for an id that does not exist
    run_id = words[words.index("run") + 1]
    if not run_id.startswith("--"):
        parser[run_id]


@pytest.mark.parametrize("page", [*PAGES, SERVING], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]+)?\)", page.read_text()):
        if target.startswith("http"):
            continue
        place = page.parent / target if target else page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text(), flags=re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor[1:] in slugs, target + anchor


def test_tools_commands_of_the_serving_page_exist_with_their_flags():
    found = re.findall(r"-m tools (\w+)([^\n`]*)", SERVING.read_text().replace("\\\n", " "))
    assert len(found) > 10
    for name, rest in found:
        function = command_function(name)
        assert set(re.findall(r"--(\w+)", rest)) <= set(inspect.signature(function).parameters), name + rest


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: str(page.relative_to(ROOT)))
def test_ids_in_the_tables_of_a_bundle_exist(page):
    parser = ConfigParser()
    parser.read_config(str(page.parents[1] / "configs/train.json"))
    table = page.read_text().split("## Training configuration")[1].split("##")[0]
    ids = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `")))
    assert len(ids) > 8
    for name in ids:
        parser[name]
