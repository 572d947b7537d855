"""Scripts that run by path in other environments, whose folder Python puts first among the places to import from."""

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest

import tools

FOLDERS = {
    "bench": {"nnunet", "nnunetv2", "batchgenerators", "dynamic_network_architectures"},
    "federated": {"nvflare", "monai", "ignite", "tensorboard"},
}  # folder of scripts to names that the environments they run in have, and this one need not have
WORKERS = ["bench/nnunet_worker.py", "federated/worker.py", "federated/client.py", "serving/label_series.py"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_module_beside_a_worker_hides_a_package(folder):
    modules = {path.stem for path in (Path(tools.__file__).parent / folder).glob("*.py")}
    assert len(modules) > 3
    installed = set(importlib.metadata.packages_distributions()) | sys.stdlib_module_names
    assert len(installed) > 300
    assert not modules & (installed | FOLDERS[folder])


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_imports_nothing_of_this_project(name):
    path = Path(tools.__file__).parent / name
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {"." * node.level + (node.module or "") for node in nodes if isinstance(node, ast.ImportFrom)}
    assert len(names) > 3
    beside = {module.stem for module in path.parent.glob("*.py")}
    assert not {found.split(".")[0] for found in names} & ({"tools", ""} | beside)
