"""What keeps a bundle from being released, each fault named."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tools.bundles import BUNDLES
from tools.serving.bundle_check import bundle_problems

WEIGHTS = b"weights"
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
TENSORS = ("network_data_format",)
NAMES = ("lung_tissue_seg", "difflung_synthesis")


def staged(name: str, folder: Path) -> Path:
    """Return a copy of a bundle with something in the place of weights, as package checks it."""
    root = folder / name
    shutil.copytree(BUNDLES / name, root, ignore=shutil.ignore_patterns("__pycache__", ".gitkeep", "eval", "models"))
    (root / "models").mkdir()
    (root / "models/model.pt").write_bytes(WEIGHTS)
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return staged("lung_tissue_seg", tmp_path)


def change(root: Path, *keys: str, to: object = None) -> None:
    """Set a value of metadata.json, or delete it if ``to`` is None."""
    path = root / "configs/metadata.json"
    content = part = json.loads(path.read_text())
    for key in keys[:-1]:
        part = part[key]
    if to is None:
        del part[keys[-1]]
    else:
        part[keys[-1]] = to
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", NAMES)
def test_our_bundles_are_fit(name, tmp_path):
    assert bundle_problems(staged(name, tmp_path)) == []


@pytest.mark.parametrize(("keys", "to", "problem"), [
    (("task",), None, "metadata.json needs a text at 'task', not null"),
    (("version",), 2, "metadata.json needs a text at 'version', not 2"),
    (("changelog",), [], "metadata.json needs an object at 'changelog', not []"),
    (("version",), "0.10.0", "metadata.json has version '0.10.0', not three numbers below 10 such as 0.2.0"),
    (("version",), "0.9.0", "metadata.json has no entry for version '0.9.0' in its changelog"),
    (("schema",), "schema.json", "metadata.json has schema 'schema.json', not an address to get it from"),
    (("monai_version",), "1.5.0", "metadata.json names monai 1.5.0, but here it is 1.6.1"),
    (("required_packages_version", "nibabel"), "1.0", "metadata.json names nibabel 1.0, but here it is 5.4.2"),
    (("required_packages_version", "no-such"), "1", "metadata.json names no-such 1, but here it is not installed"),
    ((*TENSORS, "inputs", "image"), None, "metadata.json needs 'image' as the first of network_data_format::inputs"),
    ((*TENSORS, "outputs", "pred", "dtype"), None, "metadata.json has no network_data_format::outputs::pred::dtype"),
    ((*TENSORS, "outputs", "pred", "channel_def", "3"), None, "channel_def names 0, 1, 2, 4, 5; it needs 0 to 5"),
])  # fmt: skip
def test_a_broken_key_of_the_metadata_is_named(root, keys, to, problem):
    change(root, *keys, to=to)
    assert any(problem in found for found in bundle_problems(root))


def test_metadata_that_is_not_json_is_named(root):
    (root / "configs/metadata.json").write_text("{")
    assert "metadata.json is not valid JSON" in bundle_problems(root)[0]


@pytest.mark.parametrize("name", ["models/model.pt", "LICENSE", "docs/data_license.txt", "configs/evaluate.json"])
def test_a_missing_file_is_named(root, name):
    (root / name).unlink()
    assert bundle_problems(root) == [f"{name} is missing"]


@pytest.mark.parametrize("name", ["README.md", "models/training.pt", "eval/metrics.csv", "scripts/__pycache__/a.pyc"])
def test_a_stray_file_is_named(root, name):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(b"")
    assert bundle_problems(root) == [f"{name} has no place in a bundle; remove it"]


def test_a_link_is_named(root):
    (root / "docs/more.png").symlink_to(root / "LICENSE")
    assert bundle_problems(root) == ["docs/more.png is a link; put the file itself there"]


@pytest.mark.parametrize("text", ["/home/somebody", "/Users/somebody", "C:\\Users\\somebody", "/root/data"])
def test_a_personal_path_is_named(root, text):
    with open(root / "docs/data_license.txt", "a") as stream:
        stream.write(f"see {text}/licence.txt")
    assert bundle_problems(root) == [f"docs/data_license.txt holds the personal path {text}"]


def test_a_page_without_a_section_and_another_licence_are_named(root):
    page = (root / "docs/README.md").read_text()
    (root / "docs/README.md").write_text(page.replace("## Limitations\n", "```\n# Limitations\n```\n"))
    (root / "LICENSE").write_text("MIT License")
    assert bundle_problems(root) == [
        "LICENSE is not the text of the Apache License, Version 2.0",
        "docs/README.md has no section 'limitations'",
    ]


def write_large_files(root: Path, **entry: str) -> None:
    lines = [
        f"  - path: {entry.pop('path', 'models/model.pt')}",
        *(f"    {key}: {value}" for key, value in entry.items()),
    ]
    (root / "large_files.yml").write_text("\n".join(["large_files:", *lines]) + "\n")


def test_a_large_file_needs_its_address_and_hash(root):
    for path in root.rglob("*"):
        if path.is_file() and path.name != "model.pt":
            assert path.stat().st_size > len(WEIGHTS)
    assert bundle_problems(root, large_bytes=10**6) == []
    problems = bundle_problems(root, large_bytes=len(WEIGHTS) - 1)
    assert (
        f"models/model.pt has 7 bytes, more than 6: large_files.yml must name its path, url, hash_val ({SHA256}) "
        "and hash_type (sha256)"
    ) in problems
    write_large_files(root, url="https://example.org/model.pt", hash_val=SHA256, hash_type="sha256")
    assert not any("models/model.pt" in text for text in bundle_problems(root, large_bytes=len(WEIGHTS) - 1))


@pytest.mark.parametrize(("entry", "problem"), [
    ({"url": "u", "hash_val": "f" * 64, "hash_type": "sha256"}, f"has the sha256 {SHA256}, but large_files.yml says f"),
    ({"url": "u", "hash_val": SHA256, "hash_type": "crc"}, "has hash_type 'crc' for models/model.pt, not sha256"),
    ({"hash_val": SHA256, "hash_type": "sha256"}, "large_files.yml has an entry without url"),
    ({"path": "models/b.pt", "url": "u", "hash_val": "f", "hash_type": "md5"}, "names models/b.pt, which is missing"),
])  # fmt: skip
def test_a_tampered_hash_and_a_half_entry_are_named(root, entry, problem):
    write_large_files(root, **entry)
    (found,) = bundle_problems(root)
    assert problem in found


def test_all_problems_are_named_together(root):
    change(root, "task")
    (root / "LICENSE").unlink()
    (root / "notes.txt").write_text("")
    assert len(bundle_problems(root)) == 3
