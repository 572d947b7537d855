"""The house: who may import whom (beside the contracts of pyproject.toml), and that nothing is written twice."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(path.parent for path in ROOT.glob("bundles/*/scripts"))


def imported(source: str) -> set[str]:
    """Return the modules that a source imports, relative ones with their dots."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_bundle_imports_neither_the_tools_nor_another_bundle(bundle):
    sources = sorted(bundle.glob("scripts/*.py"))
    assert len(sources) > 5
    for path in sources:
        roots = {name.split(".")[0] for name in imported(path.read_text())}
        assert not roots & {"tools", "tests", "bundles", "scripts"}, path
        assert not any(name.startswith("..") for name in imported(path.read_text())), path
    for path in bundle.glob("configs/*"):
        assert not re.search(r"\btools\.", path.read_text()), path


def test_every_package_of_the_tools_says_what_it_holds():
    packages = [path for path in (ROOT / "tools").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(packages) > 10
    for package in packages:
        assert ast.get_docstring(ast.parse((package / "__init__.py").read_text())), package
    assert len(list((ROOT / "tools").glob("*.py"))) < 10, "a module has a package"


def opened_as_text(source: str) -> list[str]:
    """Return the calls that read or write text in the encoding of whatever machine runs them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if {word.arg for word in getattr(node, "keywords", [])} & {"encoding"}:
            continue
        written = ast.unparse(node) if name in ("read_text", "write_text", "open", "run", "Popen") else ""
        own = name == "write_text" and (isinstance(node.func, ast.Name) or written.startswith("files."))
        if name in ("read_text", "write_text") and not own or "text=True" in written:
            found.append(written)
        other = ("gzip.", "Image.", "os.", "webbrowser.", "pydicom.", "zipfile.", "tarfile.")
        if name == "open" and not re.search(r"'[rwax]?b'", written) and not written.startswith(other):
            found.append(written)
    return found


@pytest.mark.parametrize("folder", ["tools", "bundles"])
def test_text_is_utf_8_whatever_the_locale(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert opened_as_text(path.read_text(encoding="utf-8")) == [], path
    assert len(opened_as_text("p.read_text(); open(p); open(p, 'rb'); p.open('w')")) == 3


@pytest.mark.slow
def test_no_six_lines_stand_twice_in_the_tools():
    command = [sys.executable, "-m", "pylint", "--disable=all", "--enable=duplicate-code", "--min-similarity-lines=6"]
    done = subprocess.run([*command, "tools"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
