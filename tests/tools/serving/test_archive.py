"""The zip: the same bytes for the same files, and no path in it leads out of its folder."""

import os
import stat
import zipfile
from pathlib import Path

import pytest

from tools.io.files import InputError
from tools.serving.archive import sha1, unpack, write_zip


def folder(place: Path) -> Path:
    """Return a bundle of two files."""
    root = place / "bundle"
    (root / "docs").mkdir(parents=True)
    (root / "LICENSE").write_text("licence")
    (root / "docs/README.md").write_text("page")
    return root


def archive(path: Path, *names: str, link: bool = False) -> Path:
    """Return a zip with members of any name."""
    with zipfile.ZipFile(path, "w") as stream:
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFLNK if link else stat.S_IFREG | 0o644) << 16
            stream.writestr(entry, "content")
    return path


def test_same_files_give_the_same_bytes_wherever_and_whenever(tmp_path):
    first, second = folder(tmp_path / "a"), folder(tmp_path / "b")
    os.utime(second / "LICENSE", (1, 1))
    (second / "LICENSE").chmod(0o600)
    write_zip(first, tmp_path / "one.zip")
    write_zip(second, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_a_zip_comes_back_as_it_was(tmp_path):
    write_zip(folder(tmp_path), tmp_path / "bundle.zip")
    root = unpack(tmp_path / "bundle.zip", tmp_path / "out", checksum=sha1(tmp_path / "bundle.zip"))
    assert root == tmp_path / "out/bundle" and (root / "docs/README.md").read_text() == "page"


@pytest.mark.parametrize("name", ["bundle/../../out.txt", "/tmp/out.txt", "..\\out.txt", "C:/out.txt", "bundle/../x"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, name):
    path = archive(tmp_path / "bad.zip", "bundle/LICENSE", name)
    with pytest.raises(InputError) as error:
        unpack(path, tmp_path / "out")
    assert f"bad.zip holds {name!r}, a path that leaves its folder; it is not to be trusted" in str(error.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bad.zip"]


def test_links_several_folders_and_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds 'bundle/link', a link, which may leave its folder"):
        unpack(archive(tmp_path / "link.zip", "bundle/link", link=True), tmp_path / "out")
    with pytest.raises(InputError, match="holds one, two, not the folder of one bundle"):
        unpack(archive(tmp_path / "two.zip", "one/a", "two/a"), tmp_path / "out")
    with pytest.raises(InputError, match="holds nothing, not the folder of one bundle"):
        unpack(archive(tmp_path / "empty.zip"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_a_damaged_and_a_missing_zip_are_refused(tmp_path):
    path = archive(tmp_path / "bundle.zip", "bundle/LICENSE")
    with pytest.raises(InputError, match=f"has the SHA-1 {sha1(path)}, but 0000 is expected"):
        unpack(path, tmp_path / "out", checksum="0000")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"content", b"CONTENT"))
    with pytest.raises(InputError, match="is no zip that can be read: Bad CRC-32"):
        unpack(path, tmp_path / "out")
    path.write_text("text")
    with pytest.raises(InputError, match="is no zip that can be read"):
        unpack(path, tmp_path / "out")
    with pytest.raises(InputError, match="none.zip does not exist"):
        unpack(tmp_path / "none.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_unpacked_over_other_files(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(InputError, match="out is not empty"):
        unpack(archive(tmp_path / "bundle.zip", "bundle/LICENSE"), tmp_path / "out")
