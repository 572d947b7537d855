"""Writing results so that an interrupted run never leaves half a file or half a folder behind."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas


class InputError(ValueError):
    """Something the user gave is wrong; the message names the thing, its value and what was expected."""


class RunError(RuntimeError):
    """A run failed although the input was accepted; the message says which run and where its log is."""


# What a disk or its owner refuses, and no fault of this project: a command ends with a sentence, not a traceback.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
HELD: dict[tuple[int, int], int] = {}  # device and number of each folder that this process writes, and what holds it


def hold(folder: Path) -> Callable[[], None]:
    """Keep other processes from a folder, where the file system can, and return what lets it go.

    Nothing needs to be let go at the end of a process, however it ends.

    Raises:
        InputError: if another process holds it.
    """
    about = os.stat(folder)
    key = about.st_dev, about.st_ino
    if key in HELD:
        return lambda: None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"output {folder} is being written by another process; wait for it, or end it") from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return lambda: None
    HELD[key] = descriptor
    return lambda: _let_go(key)


def _let_go(key: tuple[int, int]) -> None:
    if key in HELD:
        os.close(HELD.pop(key))


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let go at the end of the block what was held in it, for a process that lives on."""
    before = set(HELD)
    try:
        yield
    finally:
        for key in HELD.keys() - before:
            _let_go(key)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or the error's name if it says nothing.

    Example:
        >>> first_line(ValueError("damaged\\nat byte 3")), first_line(EOFError())
        ('damaged', 'EOFError')
    """
    return str(error).split("\n")[0] or type(error).__name__


def read_json(path: Path) -> dict:
    """Read a JSON file.

    Raises:
        InputError: if the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None


def check_settings(settings: object, source: object) -> None:
    """Check that settings read from a file are values only: MONAI would run text that begins with $, @ or %.

    Args:
        settings: What JSON holds.
        source: The file, for the message.

    Raises:
        InputError: if a text, however deep, is an expression or reference, or a dictionary names a component.
    """
    if isinstance(settings, dict):
        if "_target_" in settings:
            raise InputError(f"{source} holds a component, {settings['_target_']!r}, which could run code; remove it")
        settings = [*settings.keys(), *settings.values()]
    if isinstance(settings, str) and settings.lstrip().startswith(("$", "@", "%")):
        raise InputError(f"{source} holds {settings[:80]!r}, which could run code; write the value itself")
    for entry in settings if isinstance(settings, list) else ():
        check_settings(entry, source)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same ending beside ``path``; it becomes ``path`` when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:]) if path.name.endswith(".nii.gz") else path.suffix
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-", suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_table(path: Path, table: "pandas.DataFrame") -> None:
    """Write a table as CSV atomically, its lines ended as spreadsheets want it; what is missing stays empty."""
    write_bytes(path, table.to_csv(index=False, lineterminator="\r\n").encode())


def write_json(path: Path, content: object) -> None:
    """Write a JSON file atomically, indented by one space."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def check_new_directory(output: Path) -> Path:
    """Return ``output`` as a path, if a command may create it: absent or empty, below a folder that can be written.

    Raises:
        InputError: if it holds something, is a file, or cannot be written.
    """
    output = Path(output)
    if output.is_file():
        raise InputError(f"output {output} is a file; name a folder that does not exist yet")
    if output.is_dir() and any(entry.name != ".partial" for entry in output.iterdir()):  # what a killed run left
        raise InputError(f"output {output} is not empty; remove it or name another folder")
    check_writable(output)
    return output


def check_writable(output: Path) -> None:
    """Raise InputError if no file can be created in ``output`` (or, where it is absent, in its nearest parent)."""
    parent = Path(output).absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"output {output} cannot be written: {parent} is a file")
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise InputError(f"output {output} cannot be written: {error}") from None


@contextlib.contextmanager
def new_directory(output: Path) -> Iterator[Path]:
    """Yield a folder to fill; its content becomes ``output`` when the block ends well and vanishes when not.

    The folder lies beside ``output``, or in it where ``output`` exists and is empty (a mount cannot be replaced).

    Raises:
        InputError: if ``output`` is not empty or cannot be written.
    """
    output = check_new_directory(output).resolve()
    existed = output.is_dir()
    created = [folder for folder in output.parents if not folder.exists()]
    partial = output / ".partial" if existed else output.with_name(output.name + ".partial")
    if partial.is_dir():
        hold(partial)()  # another process may be filling it
        shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    partial.mkdir(parents=True)
    let_go = hold(partial)
    try:
        yield partial
        if existed:
            for entry in partial.iterdir():
                os.replace(entry, output / entry.name)
            partial.rmdir()
        else:
            os.replace(partial, output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in created:  # innermost first
            with contextlib.suppress(OSError):  # another process uses it by now
                folder.rmdir()
        raise
    finally:
        let_go()


def open_run(output: Path, settings: dict) -> Path:
    """Open the folder of a command that can be resumed: new, or begun earlier with the same settings.

    The settings stand in ``run.json``; a finished piece of work is whatever file the command finds there.

    Raises:
        InputError: if the folder holds something else, or a run with other settings (each difference is named), or
            another process is at it.
    """
    output = Path(output)
    run_file = output / "run.json"
    settings = json.loads(json.dumps(settings))
    if not run_file.is_file():
        check_new_directory(output)
        output.mkdir(parents=True, exist_ok=True)
        hold(output)
        write_json(run_file, settings)
        return output
    check_writable(output)
    hold(output)
    for left in output.rglob(".partial-*"):  # half files of a killed run
        left.unlink(missing_ok=True)
    earlier = read_json(run_file)
    differing = [key for key in sorted(settings.keys() | earlier.keys()) if settings.get(key) != earlier.get(key)]
    if differing:
        named = ", ".join(f"{key} was {earlier.get(key)}, now {settings.get(key)}" for key in differing)
        raise InputError(f"output {output} holds a run with other settings ({named}); name another folder")
    return output


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
