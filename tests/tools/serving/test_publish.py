"""Publishing: what would be sent where, and uploads to stand-ins of the services (never to the real ones)."""

import hashlib
import json
import urllib.request
from pathlib import Path

import pytest

from tests.tools.fakes.services import COMMIT, GitHub, Hub, running
from tools.io.files import InputError, RunError
from tools.serving.publish import check_repository, credentials, model_info, to_github, to_hugging_face, upload_plan

CONTENT = b"zip of the bundle"


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "lung_tissue_seg_v0.2.0.zip"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """A bundle of two files."""
    for name, text in (("docs/README.md", "# Model overview\n"), ("models/model.pt", "weights")):
        path = tmp_path / "lung_tissue_seg" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path / "lung_tissue_seg"


def test_entry_of_the_zip_is_what_monai_reads(archive):
    source = "https://github.com/owner/name/releases/download/lung_tissue_seg_v0.2.0/lung_tissue_seg_v0.2.0.zip"
    entry = {"checksum": hashlib.sha1(CONTENT).hexdigest(), "source": source}
    assert model_info(archive, "owner/name") == {"lung_tissue_seg_v0.2.0": entry}


def test_plan_names_what_goes_where_and_how_it_comes_back(archive, root):
    plan = upload_plan(archive, root, "owner/name")
    assert plan["github"]["files"] == ["lung_tissue_seg_v0.2.0.zip"]
    assert plan["huggingface"]["files"] == ["README.md", "docs/README.md", "models/model.pt"]
    assert "repo='owner/name/lung_tissue_seg_v0.2.0'" in plan["github"]["then"]


@pytest.mark.parametrize("name", ["name", "a/b/c", "owner/", "owner/na me", "../name"])
def test_a_repository_is_an_owner_and_a_name(name):
    with pytest.raises(InputError, match=f"repository is owner/name, not '{name}'"):
        check_repository(name)
    check_repository("some-owner/some.name_1")


def test_publishing_needs_a_place_a_repository_and_credentials(monkeypatch):
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert credentials(None, None) is None
    with pytest.raises(InputError, match="publish is github or huggingface, not 'gitlab'"):
        credentials("gitlab", "owner/name")
    with pytest.raises(InputError, match="publish github needs --repository"):
        credentials("github", None)
    with pytest.raises(InputError, match="needs credentials in the environment variable GITHUB_TOKEN"):
        credentials("github", "owner/name")
    assert credentials("huggingface", "owner/name") == "secret"


def test_github_release_holds_the_zip_and_is_entered_beside_the_others(archive):
    with running(GitHub()) as github:
        github.files["models/model_info.json"] = json.dumps({"other_v0.1.0": {"source": "x"}}).encode()
        assert to_github(archive, "owner/name", "secret", github.address) == f"{github.address}/release"
    assert github.assets == {archive.name: CONTENT}
    assert github.release["tag_name"] == "lung_tissue_seg_v0.2.0"
    assert not github.release["draft"] and github.release["target_commitish"] == COMMIT
    known = json.loads(github.files["models/model_info.json"])
    assert known == {"other_v0.1.0": {"source": "x"}} | model_info(archive, "owner/name")
    assert github.tokens == {"Bearer secret"}


def test_a_version_is_released_once(archive):
    with running(GitHub()) as github:
        to_github(archive, "owner/name", "secret", github.address)
        sent = len(github.requests)
        with pytest.raises(InputError, match="has a release lung_tissue_seg_v0.2.0; a changed bundle needs a new"):
            to_github(archive, "owner/name", "secret", github.address)
    assert [method for method, _ in github.requests[sent:]] == ["GET"]


def test_a_failed_upload_leaves_a_draft_and_no_entry(archive):
    with running(GitHub()) as github:
        github.fail_at = ("POST", "/uploads/7/assets")
        with pytest.raises(RunError, match="POST http.*/uploads/7/assets failed: 500 .*a draft release may be left"):
            to_github(archive, "owner/name", "secret", github.address)
    assert github.release["draft"] and not github.files


def test_hugging_face_gets_the_files_a_card_and_the_tags(root):
    pytest.importorskip("huggingface_hub")
    with running(Hub()) as hub:
        hub.tags = ["0.1.0", "latest_version"]
        assert to_hugging_face(root, "0.2.0", "owner/name", "secret", hub.address).endswith(COMMIT)
        with pytest.raises(InputError, match="owner/name has version 0.2.0; a changed bundle needs a new version"):
            to_hugging_face(root, "0.2.0", "owner/name", "secret", hub.address)
    assert hub.tags == ["0.1.0", "0.2.0", "latest_version"]
    assert set(hub.files) == {"README.md", "docs/README.md", "models/model.pt"}
    assert hub.files["models/model.pt"] == b"weights"
    assert (
        hub.files["README.md"].startswith(b"---\nlibrary_name: monai\n")
        and b"# Model overview" in hub.files["README.md"]
    )
    assert hub.tokens == {"Bearer secret"}


def test_a_service_that_fails_is_named(root):
    pytest.importorskip("huggingface_hub")
    with running(GitHub()) as other:  # answers 404 to everything that is Hugging Face's
        with pytest.raises(RunError, match="upload to owner/name failed: .*404"):
            to_hugging_face(root, "0.2.0", "owner/name", "secret", other.address)
    with pytest.raises(RunError, match="upload to owner/name failed: .*refused"):
        to_hugging_face(root, "0.2.0", "owner/name", "secret", other.address)


def test_the_stand_in_gives_out_what_it_holds():
    with running(Hub()) as hub:
        hub.files["a"] = b"content"
        with urllib.request.urlopen(f"{hub.address}/owner/name/resolve/{COMMIT}/a") as answer:
            assert answer.read() == b"content"
