"""Whether a bundle's configs and scripts are the packaged ones: they are programs, and run with your rights."""

from pathlib import Path

from tools.bundles import BUNDLES
from tools.io.files import InputError

PARTS = ("configs", "scripts")


def differences(root: Path) -> list[str]:
    """Return the files of a bundle's configs and scripts that are not the packaged bundle's of its name, sorted."""
    own, root = BUNDLES / Path(root).resolve().name, Path(root).resolve()
    if root == own.resolve():
        return []
    names = {
        path.relative_to(folder).as_posix()
        for folder in (own, root)
        for part in PARTS
        for path in (folder / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sorted(name for name in names if _content(own / name) != _content(root / name))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def check_trusted(root: Path, trust: bool) -> None:
    """Raise InputError, which names what differs, unless a bundle's programs are the packaged ones or are trusted."""
    found = [] if trust else differences(root)
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InputError(
            f"{root} differs from the packaged bundle in {', '.join(found[:5])}{more}; these are programs that would "
            "run with your rights; look at them, then trust them: --trust, or trust=True in Python"
        )
