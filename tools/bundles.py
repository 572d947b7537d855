"""Where the bundles lie, and the ``scripts`` of one in this process under a name of their own."""

import functools
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def import_scripts(bundle_root: Path) -> str:
    """Import the ``scripts`` of a bundle under a name of its own, and return that name.

    All bundles call theirs ``scripts``, and a process holds one module of a name; so the package is loaded under
    another one, by which its modules, which import each other relatively, are found too.
    """
    folder = Path(bundle_root).resolve() / "scripts"
    name = f"bundle_scripts_{zlib.crc32(str(folder).encode()):08x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return name


@functools.cache
def load_script(bundle: str, name: str) -> ModuleType:
    """Return a module of a bundle's ``scripts``.

    Args:
        bundle: Folder name below ``bundles/``.
        name: Name of the module.
    """
    return importlib.import_module(f"{import_scripts(BUNDLES / bundle)}.{name}")


def rename_targets(config: object, package: str) -> object:
    """Return a config whose components of ``scripts`` are those of another package.

    Example:
        >>> rename_targets({"a": [{"_target_": "scripts.region.PasteRegiond"}, "scripts."]}, "others")
        {'a': [{'_target_': 'others.region.PasteRegiond'}, 'scripts.']}
    """
    if isinstance(config, Mapping):
        renamed = {key: rename_targets(value, package) for key, value in config.items()}
        target = renamed.get("_target_")
        if isinstance(target, str) and target.startswith("scripts."):
            renamed["_target_"] = package + target.removeprefix("scripts")
        return renamed
    return [rename_targets(entry, package) for entry in config] if isinstance(config, list) else config
