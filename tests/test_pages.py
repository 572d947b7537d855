"""What the pages say exists, and how they are written: lines, cells, commands, flags, config ids, links, files."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser

from tools.__main__ import COMMANDS, command_function

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(path for path in ROOT.glob("docs/*.md") if path.name != "log.md")  # the log keeps what was written then
BUNDLES = sorted(ROOT.glob("bundles/*/docs/README.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS, *BUNDLES]
README_LINES, LINE, CELL = 175, 120, 80


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page's shell blocks, continued lines joined, comments and here-documents dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
    text = re.sub(r"<<(\w+)\n.*?\n\1\n", "\n", "\n".join(blocks), flags=re.DOTALL).replace("\\\n", " ")
    words = []
    for line in text.splitlines():
        try:
            words.append(shlex.split(line, comments=True))
        except ValueError:  # a line of a program between quotes
            continue
    return [command for command in words if command]


ALL = [(page, command) for page in PAGES for command in commands(page)]


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_pages_hold_commands():
    assert {"README.md", "CONTRIBUTING.md", "docs/method.md", "docs/study.md"} <= set(map(name_of, PAGES))
    assert len(BUNDLES) == 2
    assert len(ALL) > 60


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@every_page
def test_lines_are_short(page):
    long = [f"{number}: {line}" for number, line in enumerate(page.read_text().splitlines(), 1) if len(line) > LINE]
    assert not long


@every_page
def test_table_cells_are_short(page):
    rows = [line for line in without_code(page.read_text()).splitlines() if line.startswith("|")]
    assert not [cell for row in rows for cell in re.split(r"(?<!\\)\|", row) if len(cell.strip()) > CELL]


@every_page
def test_tools_commands_of_a_page_exist_with_their_flags(page):
    text = page.read_text().replace("\\\n", " ")
    for name, rest in re.findall(r"-m tools(?: |\n)(\w+)([^\n`]*)", text):
        if name == "COMMAND":
            continue
        function = command_function(name)
        flags = set(re.findall(r"(?<!\S)--(\w+)", rest)) - {"help"}
        assert flags <= set(inspect.signature(function).parameters), name + rest


def test_every_command_has_a_section_with_an_example_that_gives_what_it_needs():
    page = ROOT / "docs/commands.md"
    sections = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]
    assert sorted(section.split("\n")[0] for section in sections) == sorted(COMMANDS)
    for section in sections:
        name = section.split("\n")[0]
        examples = re.findall(rf"-m tools {name}\b([^\n]*)", section.replace("\\\n", " "))
        assert examples, name
        parameters = inspect.signature(command_function(name)).parameters
        needed = {
            flag
            for flag, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY)  # named by no flag
        }
        assert needed <= set(re.findall(r"--(\w+)", examples[0])), name
        told = set(re.findall(r"(?<![\w-])--(\w+)", re.sub(r"```.*?```", "", section, flags=re.DOTALL)))
        assert told <= set(parameters), name


def test_the_readme_names_every_command():
    table = (ROOT / "README.md").read_text().split("## Commands")[1].split("\n## ")[0]
    first = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", first)) == set(COMMANDS)


def bundle_runs():
    for page, words in ALL:
        if "monai.bundle" in words and "run" in words and "--config_file" in words:
            yield pytest.param(page, words, id=f"{name_of(page)} {' '.join(words[-8:])}")


@pytest.mark.parametrize(("page", "words"), bundle_runs())
def test_bundle_run_of_a_page_names_configs_and_ids_that_exist(page, words):
    flags = dict(zip(words, words[1:]))
    root = ROOT / flags["--bundle_root"] if "--bundle_root" in flags else page.parents[1]
    files = re.findall(r"[\w/.-]+\.(?:json|yaml)", flags["--config_file"])
    own = [root / "configs" / Path(name).name for name in files if "configs/" in name]
    assert own
    parser = ConfigParser()
    parser.read_config([str(path) for path in own])
    for flag in (word[2:] for word in words if word.startswith("--")):
        if flag not in ("config_file", "bundle_root", "standalone", "nproc_per_node"):
            parser[flag]  # raises KeyError for an id that does not exist
    run_id = words[words.index("run") + 1]
    if not run_id.startswith("--"):
        parser[run_id]


def test_overlays_that_the_serving_page_shows_refer_to_ids_of_the_segmenter_or_their_own():
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/serving.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        parser = ConfigParser(yaml.safe_load((ROOT / "bundles/lung_tissue_seg/configs/train.json").read_text()))
        own = yaml.safe_load(block)
        parser.update({key.lstrip("+"): value for key, value in own.items()})
        references = set(re.findall(r"@(\w+(?:::\w+)*)", block)) | {key.lstrip("+") for key in own}
        for name in references:
            parser[name]


@every_page
def test_links_of_a_page_lead_somewhere(page):
    text = without_code(page.read_text())
    references = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", text, flags=re.MULTILINE))
    used = set(re.findall(r"\]\s?\[([^\]]+)\]", text))
    assert used == set(references), used ^ set(references)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + list(references.values())
    for target in targets:
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        place = page.parent / file if file else page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", without_code(place.read_text()), flags=re.MULTILINE)
            assert anchor in map(slug, headings), target


@every_page
def test_files_of_the_repository_that_a_page_names_exist(page):
    """Paths that begin with a folder of the repository, or of a bundle, between backticks, alone or in a command."""
    spans = " ".join(re.findall(r"`([^`\n]+)`", without_code(page.read_text())))
    roots = [ROOT, *(bundle.parents[1] for bundle in BUNDLES)]
    for name in re.findall(r"(?<![\w./-])(?:tools|tests|docs|bundles|configs|scripts)/[\w./-]*", spans):
        assert "/models/" in name or any((root / name).exists() for root in roots), name  # weights are trained


@pytest.mark.parametrize("page", BUNDLES, ids=name_of)
def test_ids_in_the_tables_of_a_bundle_exist(page):
    parser = ConfigParser()
    parser.read_config(str(page.parents[1] / "configs/train.json"))
    table = page.read_text().split("## Training configuration")[1].split("\n## ")[0]
    ids = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `")))
    assert len(ids) > 8
    for name in ids:
        parser[name]


def test_settings_that_the_method_names_exist_with_the_values_it_says():
    table = (ROOT / "docs/method.md").read_text().split("| setting | config id |")[1].split("\n\n")[0]
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundles/difflung_synthesis/configs/train.json"))
    found = [line.split("|")[2:4] for line in table.splitlines() if line.startswith("|") and "`" in line]
    values = {}
    for ids, said in found:
        values |= dict(zip(re.findall(r"`(\w+)`", ids), map(float, re.findall(r"[\d.]+", said))))
    assert values == {name: parser[name] for name in ("gamma", "rho", "q_min", "q_max", "measured_patches")}


def test_servers_of_the_pages_listen_on_this_machine_alone():
    servers = [" ".join(command) for _, command in ALL if "start_server" in command]
    servers += re.findall("tritonserver --.*", (ROOT / "docs/serving.md").read_text())
    assert len(servers) == 3
    for words in servers:
        assert "--host 127.0.0.1" in words or "--grpc-address=127.0.0.1 --http-address=127.0.0.1" in words
    assert re.findall("listen (.*);", (ROOT / "docs/hospital/nginx.conf").read_text()) == ["127.0.0.1:8080"]
