"""Where the bundles lie, and the ``scripts`` of one in this process under a name of their own."""

import importlib.util
import sys
import zlib
from pathlib import Path

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
