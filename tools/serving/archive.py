"""The zip of a bundle as the Model Zoo releases it: the same bytes each time, unpacked only where it belongs."""

import hashlib
import stat
import zipfile
from pathlib import Path, PurePosixPath

from tools.io.files import InputError, atomic_file, check_new_directory, new_directory

OLDEST = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def write_zip(root: Path, archive: Path) -> None:
    """Write a folder into a zip, below its own name; the same files give the same bytes."""
    root = Path(root)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    with atomic_file(archive) as temporary, zipfile.ZipFile(temporary, "w") as stream:
        for name in names:
            entry = zipfile.ZipInfo(f"{root.name}/{name}", OLDEST)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # as Unix writes them, anywhere
            stream.writestr(entry, (root / name).read_bytes(), zipfile.ZIP_DEFLATED, 9)


def unpack(archive: Path, output: Path, checksum: str | None = None) -> Path:
    """Unpack a zip into a new or empty folder, after looking at every path in it, and return the bundle's folder.

    InputError, and nothing is left in ``output``, if the zip is missing, damaged or another than ``checksum`` (its
    SHA-1, as model_info.json names it) says, holds a link, a path that leads out of its folder, or more than one
    folder.
    """
    archive = Path(archive)
    check_new_directory(output)
    if not archive.is_file():
        raise InputError(f"{archive} does not exist")
    found = sha1(archive)
    if checksum is not None and found != checksum:
        raise InputError(f"{archive} has the SHA-1 {found}, but {checksum} is expected; get it again from its source")
    try:
        with zipfile.ZipFile(archive) as stream, new_directory(output) as partial:
            members = stream.infolist()
            roots = {_safe_path(archive, member).parts[0] for member in members}
            if len(roots) != 1:
                raise InputError(
                    f"{archive} holds {', '.join(sorted(roots)) or 'nothing'}, not the folder of one bundle"
                )
            stream.extractall(partial)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise InputError(f"{archive} is no zip that can be read: {error}") from None
    return Path(output) / roots.pop()


def _safe_path(archive: Path, member: zipfile.ZipInfo) -> PurePosixPath:
    """Return where a member of a zip lies, or raise InputError if that is not below the folder it is unpacked into."""
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename or not path.parts:
        raise InputError(f"{archive} holds {member.filename!r}, a path that leaves its folder; it is not to be trusted")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise InputError(
            f"{archive} holds {member.filename!r}, a link, which may leave its folder; it is not to be trusted"
        )
    return path


def sha1(path: Path) -> str:
    """Return the SHA-1 of a file, which is what the Model Zoo's model_info.json holds."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha1").hexdigest()
