"""What makes a bundle's folder fit to be released: its files, metadata, pages and hashes."""

import fnmatch
import hashlib
import importlib.metadata
import json
import re
from pathlib import Path

from monai.bundle import ConfigParser

from tools.io.files import InputError, read_json

# Patterns of the files that may lie in each folder of a bundle; everything else is stray.
FILES = {
    ".": ("LICENSE", "large_files.yml"),
    "configs": ("*.json", "*.yaml", "logging.conf"),
    "docs": ("README.md", "comparison.md", "data_license.txt", "*.png", "*.ctbl", "*_dicom.json"),
    "models": ("model.pt", "card.json"),
    "scripts": ("*.py",),
}
REQUIRED_FILES = (
    "LICENSE",
    *(f"configs/{name}.json" for name in ("metadata", "train", "evaluate", "inference")),
    *("configs/multi_gpu_train.json", "configs/multi_gpu_evaluate.json", "configs/logging.conf"),
    *("docs/README.md", "docs/data_license.txt", "models/model.pt"),
)
TEXTS = {
    **{name: str for name in ("schema", "version", "monai_version", "pytorch_version", "numpy_version")},
    **{name: str for name in ("task", "description", "authors", "copyright")},
    **{name: dict for name in ("changelog", "required_packages_version", "network_data_format")},
}  # required keys of metadata.json and what each holds
PACKAGES = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}
TENSOR = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data", "channel_def")
SECTIONS = (
    *("model overview", "data", "training configuration", "input", "output", "performance", "commands"),
    *("limitations", "license", "references"),
)
PERSONAL = re.compile(r"(/home/|/Users/|/root/|[A-Za-z]:\\+Users\\+)[\w.-]*")
LARGE_BYTES = 25 * 1024 * 1024  # a larger file cannot lie in the Model Zoo's repository


def bundle_problems(root: Path, large_bytes: int = LARGE_BYTES) -> list[str]:
    """Return everything that is wrong with the files of a bundle, one sentence each; none is built or run.

    Of a file above ``large_bytes``, ``large_files.yml`` must name address and hash.
    """
    root = Path(root)
    problems = [f"{name} is missing" for name in REQUIRED_FILES if not (root / name).is_file()]
    problems += stray_problems(root)
    if (root / "configs/metadata.json").is_file():
        problems += metadata_problems(root / "configs/metadata.json")
    problems += page_problems(root)
    return problems + large_file_problems(root, large_bytes)


def stray_problems(root: Path) -> list[str]:
    """Return the files that have no place in a bundle, links, and personal paths in text."""
    problems = []
    for path in sorted(path for path in root.rglob("*") if path.is_symlink() or path.is_file()):
        name = path.relative_to(root)
        if path.is_symlink():
            problems.append(f"{name} is a link; put the file itself there")
        elif not any(fnmatch.fnmatchcase(name.name, pattern) for pattern in FILES.get(str(name.parent), ())):
            problems.append(f"{name} has no place in a bundle; remove it")
        elif path.suffix not in (".pt", ".png"):
            found = PERSONAL.search(path.read_text(encoding="utf-8", errors="replace"))
            problems += [f"{name} holds the personal path {found[0]}"] if found else []
    return problems


def metadata_problems(path: Path) -> list[str]:
    """Return what is wrong with metadata.json: keys, version, changelog, tensors, packages."""
    try:
        metadata = read_json(path)
    except InputError as error:
        return [str(error)]
    problems = []
    for key, kind in TEXTS.items():
        if not isinstance(metadata.get(key), kind) or not metadata[key]:
            wanted = "a text" if kind is str else "an object"
            problems.append(f"metadata.json needs {wanted} at {key!r}, not {json.dumps(metadata.get(key))}")
    if problems:
        return problems
    version = metadata["version"]
    if not re.fullmatch(r"\d\.\d\.\d", version):  # the zoo sorts versions as text
        problems.append(f"metadata.json has version {version!r}, not three numbers below 10 such as 0.2.0")
    if version not in metadata["changelog"]:
        problems.append(f"metadata.json has no entry for version {version!r} in its changelog")
    if not metadata["schema"].startswith("https://"):
        problems.append(f"metadata.json has schema {metadata['schema']!r}, not an address to get it from")
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        problems += tensor_problems(f"network_data_format::{side}", metadata["network_data_format"].get(side), name)
    return problems + package_problems(metadata)


def tensor_problems(place: str, tensors: object, name: str) -> list[str]:
    """Return what is wrong with the inputs or outputs of metadata.json, the first of which is called ``name``."""
    if not isinstance(tensors, dict) or next(iter(tensors), None) != name:
        return [f"metadata.json needs {name!r} as the first of {place}"]
    missing = [key for key in TENSOR if key not in tensors[name]]
    problems = [f"metadata.json has no {place}::{name}::{key}" for key in missing]
    if not missing:
        channels = tensors[name]["num_channels"]
        if list(tensors[name]["channel_def"]) != [str(number) for number in range(channels)]:
            problems.append(
                f"metadata.json gives {place}::{name} {channels} channels, but channel_def names "
                f"{', '.join(tensors[name]['channel_def'])}; it needs 0 to {channels - 1}"
            )
    return problems


def package_problems(metadata: dict) -> list[str]:
    """Return the packages whose version in metadata.json is not the installed one, with which it is proven."""
    wanted = {package: metadata[key] for key, package in PACKAGES.items()} | metadata["required_packages_version"]
    problems = []
    for package, version in wanted.items():
        try:
            installed = importlib.metadata.version(package).split("+")[0]  # without the build, as in 2.13.0+cpu
        except importlib.metadata.PackageNotFoundError:
            installed = "not installed"
        if installed != version:
            problems.append(f"metadata.json names {package} {version}, but here it is {installed}")
    return problems


def page_problems(root: Path) -> list[str]:
    """Return what lacks in the licence and in the page."""
    problems = []
    licence, page = root / "LICENSE", root / "docs/README.md"
    if licence.is_file() and not re.search(r"Apache License\s+Version 2\.0", licence.read_text(encoding="utf-8")):
        problems.append("LICENSE is not the text of the Apache License, Version 2.0")
    if page.is_file():
        outside_code = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        titles = [title.strip().lower() for title in re.findall(r"^#+ (.+)$", outside_code, flags=re.MULTILINE)]
        problems += [f"docs/README.md has no section {section!r}" for section in SECTIONS if section not in titles]
    return problems


def large_file_problems(root: Path, large_bytes: int) -> list[str]:
    """Return the files that are too large without an entry in large_files.yml, and entries that do not fit."""
    entries, problems = {}, []
    if (root / "large_files.yml").is_file():
        for entry in ConfigParser.load_config_file(str(root / "large_files.yml")).get("large_files") or []:
            lacking = [key for key in ("path", "url", "hash_val", "hash_type") if not entry.get(key)]
            problems += [f"large_files.yml has an entry without {key}: {entry}" for key in lacking]
            if not lacking:
                entries[entry["path"]] = entry
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name, size = path.relative_to(root).as_posix(), path.stat().st_size
        if size > large_bytes and name not in entries:
            problems.append(
                f"{name} has {size} bytes, more than {large_bytes}: large_files.yml must name its path, url, hash_val "
                f"({_digest(path, 'sha256')}) and hash_type (sha256)"
            )
    for name, entry in entries.items():
        path, kind = root / name, entry["hash_type"].lower()
        if kind not in ("md5", "sha1", "sha256", "sha512"):
            problems.append(f"large_files.yml has hash_type {entry['hash_type']!r} for {name}, not sha256")
        elif not path.is_file():
            problems.append(f"large_files.yml names {name}, which is missing")
        elif _digest(path, kind) != entry["hash_val"]:
            problems.append(
                f"{name} has the {kind} {_digest(path, kind)}, but large_files.yml says {entry['hash_val']}"
            )
    return problems


def _digest(path: Path, kind: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, kind).hexdigest()
