"""Writing files and folders: all or nothing."""

import json
import os
import subprocess
import sys

import pytest

from tools.io import files
from tools.io.files import InputError


def test_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep/report.json"
    files.write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(ZeroDivisionError), files.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


def test_temporary_file_keeps_the_ending_and_the_result_is_readable(tmp_path):
    with files.atomic_file(tmp_path / "case.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz") and temporary.name.startswith(".")
    assert (tmp_path / "case.nii.gz").stat().st_mode & 0o777 != 0o600


def test_unserialisable_content_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_reading_missing_or_broken_json_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.json does not exist"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad\.json is not valid JSON: .*line 1"):
        files.read_json(tmp_path / "bad.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match=r"bytes\.json is not valid JSON"):
        files.read_json(tmp_path / "bytes.json")
    with pytest.raises(InputError, match="cannot be read"):
        files.read_json(tmp_path)


@pytest.mark.parametrize("existed", [False, True])
def test_new_directory_appears_whole_or_not_at_all(tmp_path, existed):
    output = tmp_path / "a/out"
    if existed:
        output.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ZeroDivisionError), files.new_directory(output) as folder:
        (folder / "half").touch()
        assert not (output / "half").exists()
        raise ZeroDivisionError
    assert sorted(tmp_path.rglob("*")) == before
    with files.new_directory(output) as folder:
        (folder / "labels").mkdir()
        (folder / "labels/file").touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", output, output / "labels", output / "labels/file"]


def test_existing_empty_output_is_filled_and_not_replaced(tmp_path):
    output = tmp_path / "mount"
    output.mkdir()
    inode = output.stat().st_ino  # a mounted folder cannot be removed or renamed
    with files.new_directory(output) as folder:
        assert folder.parent == output  # on the same disk, and writable where the parent is not
        (folder / "file").touch()
    assert output.stat().st_ino == inode and [entry.name for entry in output.iterdir()] == ["file"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/half").touch()
    with files.new_directory(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "out"]


def test_output_in_use_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").touch()
    with pytest.raises(InputError, match=r"out is not empty; remove it or name another folder"):
        files.check_new_directory(tmp_path / "out")
    with pytest.raises(InputError, match=r"kept is a file; name a folder that does not exist yet"):
        files.check_new_directory(tmp_path / "out/kept")
    with pytest.raises(InputError, match=r"deep cannot be written: .*kept is a file"):
        files.check_new_directory(tmp_path / "out/kept/deep")
    with pytest.raises(InputError, match="output /proc/none cannot be written"):
        files.check_new_directory("/proc/none")


def test_resumed_run_needs_the_same_settings(tmp_path):
    output = tmp_path / "run"
    assert files.open_run(output, {"seed": 0, "steps": (1, 2)}) == output
    assert files.open_run(output, {"seed": 0, "steps": (1, 2)}) == output
    with pytest.raises(InputError, match=r"run holds a run with other settings \(seed was 0, now 1\)"):
        files.open_run(output, {"seed": 1, "steps": (1, 2)})
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(InputError, match="other is not empty"):
        files.open_run(tmp_path / "other", {})


@pytest.fixture
def held(tmp_path):
    """Return what holds a folder in another process until the test ends."""
    started = []

    def hold(folder):
        folder.mkdir(parents=True, exist_ok=True)
        program = (
            "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(flush=True)"
        )
        words = [sys.executable, "-c", f"{program}; sys.stdin.read()", str(folder)]
        started.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        started[-1].stdout.readline()
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_folder_that_another_process_writes_is_refused_until_that_one_ends(tmp_path, held):
    files.write_json(tmp_path / "run/run.json", {"seed": 0})
    other = held(tmp_path / "run")
    with pytest.raises(InputError, match="run is being written by another process; wait for it, or end it"):
        files.open_run(tmp_path / "run", {"seed": 0})
    other.kill()
    other.wait()
    assert files.open_run(tmp_path / "run", {"seed": 0}) == tmp_path / "run"


def test_a_folder_that_another_process_fills_is_neither_taken_nor_emptied(tmp_path, held):
    held(tmp_path / "out.partial")
    (tmp_path / "out.partial/half").touch()
    with (
        pytest.raises(InputError, match="out.partial is being written by another process"),
        files.new_directory(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / "out.partial/half").is_file() and not (tmp_path / "out").exists()


def test_a_folder_is_let_go_when_it_is_filled(tmp_path, held):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number in range(5):
        with files.new_directory(tmp_path / f"out{number}"):
            pass
    assert not files.HELD or before == 0 or len(os.listdir("/proc/self/fd")) <= before
    assert held(tmp_path / "out0").poll() is None


def test_half_files_of_a_killed_run_are_removed_when_it_goes_on(tmp_path):
    output = files.open_run(tmp_path / "run", {"seed": 0})
    (output / "images").mkdir()
    for name in (".partial-abc.json", "images/.partial-x.nii.gz", "images/a.nii.gz"):
        (output / name).touch()
    files.open_run(output, {"seed": 0})
    assert sorted(path.name for path in output.rglob("*") if path.is_file()) == ["a.nii.gz", "run.json"]


def test_hash_is_sha256(tmp_path):
    (tmp_path / "abc").write_text("abc")
    assert files.sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")
