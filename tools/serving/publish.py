"""Where a released bundle lies: the entry of model_info.json, and uploads to a GitHub release or to Hugging Face."""

import base64
import json
import os
import string
from pathlib import Path

from tools.io.files import InputError, RunError
from tools.serving.archive import sha1

PLACES = {"github": "GITHUB_TOKEN", "huggingface": "HF_TOKEN"}  # where to, and the variable with the credentials
UNNAMED = "OWNER/NAME"  # stands for the repository that the user has not named
GITHUB, GITHUB_API = "https://github.com", "https://api.github.com"
MODEL_INFO = "models/model_info.json"  # where MONAI looks for it in a repository
NAME = set(string.ascii_letters + string.digits + "._-")  # of an owner or a repository
SECONDS = 60  # to wait for an answer
CARD = "---\nlibrary_name: monai\nlicense: apache-2.0\ntags:\n- monai\n- medical\n---\n"


def model_info(archive: Path, repository: str) -> dict[str, dict[str, str]]:
    """Return the entry of ``model_info.json`` from which MONAI lists and downloads a bundle.

    The release bears the name of the zip without its ending, so each version has a release of its own.

    Args:
        archive: the zip, called NAME_vVERSION.zip.
        repository: owner/name on GitHub.
    """
    source = f"{GITHUB}/{repository}/releases/download/{archive.stem}/{archive.name}"
    return {archive.stem: {"checksum": sha1(archive), "source": source}}


def upload_plan(archive: Path, root: Path, repository: str) -> dict:
    """Return what would be uploaded where.

    Args:
        archive: the zip, for a GitHub release.
        root: the unpacked bundle, for Hugging Face, which keeps files and no zip.
        repository: owner/name at either.
    """
    name, version = archive.stem.rsplit("_v", 1)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    github = {"release": archive.stem, "files": [archive.name], "merges an entry into": MODEL_INFO}
    github["then"] = (
        f"monai.bundle.download({name!r}, {version!r}, source='github', repo='{repository}/{archive.stem}')"
    )
    hub = {"tags": [version, "latest_version"], "files": ["README.md", *files]}
    hub["then"] = f"monai.bundle.download({name!r}, {version!r}, source='huggingface_hub', repo={repository!r})"
    return {"repository": repository, "github": github, "huggingface": hub}


def credentials(place: str | None, repository: str | None) -> str | None:
    """Return the token for a place, or None where nothing is published.

    Raises:
        InputError: if there is no such place, no repository, or no token in the environment.
    """
    if place is None:
        return None
    if place not in PLACES:
        raise InputError(f"publish is {' or '.join(PLACES)}, not {place!r}")
    if repository is None:
        raise InputError(f"publish {place} needs --repository owner/name")
    if not os.environ.get(PLACES[place]):
        raise InputError(f"publish {place} needs credentials in the environment variable {PLACES[place]}")
    return os.environ[PLACES[place]]


def check_repository(repository: str) -> None:
    """Raise InputError if a repository is not given as owner/name."""
    parts = repository.split("/")
    if len(parts) != 2 or not all(part.strip("._-") and set(part) <= NAME for part in parts):
        raise InputError(f"repository is owner/name, not {repository!r}")


def to_github(archive: Path, repository: str, token: str, api: str = GITHUB_API) -> str:
    """Make a release with the zip and enter it in the repository's ``model_info.json``.

    The release stays a draft until the zip lies there, so that no entry ever points at nothing.

    Args:
        archive: the zip.
        repository: owner/name.
        token: of a user who may write there.
        api: address of the interface.

    Returns:
        The address of the release.

    Raises:
        InputError: if the version has been released before.
        RunError: if a request fails.
    """
    base = f"{api}/repos/{repository}"
    if _request(token, "GET", f"{base}/releases/tags/{archive.stem}", absent=True) is not None:
        raise InputError(f"{repository} has a release {archive.stem}; a changed bundle needs a new version")
    branch = _request(token, "GET", base)["default_branch"]
    release = {"tag_name": archive.stem, "name": archive.stem, "target_commitish": branch, "draft": True}
    draft = _request(token, "POST", f"{base}/releases", json=release | {"body": "Research use only."})
    address = draft["upload_url"].split("{")[0]
    headers, content = {"Content-Type": "application/zip"}, archive.read_bytes()
    _request(token, "POST", address, params={"name": archive.name}, data=content, headers=headers)
    place = f"{base}/contents/{MODEL_INFO}"
    found = _request(token, "GET", place, params={"ref": branch}, absent=True)
    known = json.loads(base64.b64decode(found["content"])) if found else {}
    text = json.dumps(known | model_info(archive, repository), indent=4) + "\n"
    change = {
        "message": f"Release {archive.stem}",
        "branch": branch,
        "content": base64.b64encode(text.encode()).decode(),
    }
    commit = _request(token, "PUT", place, json=change | ({"sha": found["sha"]} if found else {}))["commit"]["sha"]
    done = {"draft": False, "target_commitish": commit}
    return _request(token, "PATCH", f"{base}/releases/{draft['id']}", json=done)["html_url"]


def _request(
    token: str, method: str, address: str, absent: bool = False, headers: dict | None = None, **options: object
) -> dict | None:
    """Return GitHub's answer, or None if ``absent`` is allowed and there is nothing; RunError for any other failure."""
    try:
        import requests
    except ImportError:
        raise InputError("publishing on GitHub needs the package requests; pip install requests") from None
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"} | (headers or {})
    try:
        answer = requests.request(method, address, headers=headers, timeout=SECONDS, **options)
        if absent and answer.status_code == 404:
            return None
        answer.raise_for_status()
        return answer.json()
    except requests.RequestException as error:
        raise RunError(f"{method} {address} failed: {error}; a draft release may be left, remove it by hand") from None


def to_hugging_face(root: Path, version: str, repository: str, token: str, endpoint: str | None = None) -> str:
    """Upload the files of an unpacked bundle and tag the commit with the version, as MONAI downloads it.

    Args:
        root: the bundle's folder, whose page becomes the model card.
        version: of the bundle.
        repository: owner/name, made if it is not there.
        token: of a user who may write there.
        endpoint: address of the interface; the library's own if None.

    Returns:
        The address of the commit.

    Raises:
        InputError: if the version is there, or huggingface_hub is not installed.
        RunError: if a request fails.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import RevisionNotFoundError
    except ImportError:
        raise InputError("publishing on Hugging Face needs its package; pip install huggingface_hub") from None
    hub = HfApi(endpoint=endpoint, token=token)
    try:
        hub.create_repo(repository, exist_ok=True)
        if version in [tag.name for tag in hub.list_repo_refs(repository).tags]:
            raise InputError(f"{repository} has version {version}; a changed bundle needs a new version")
        card = CARD + (root / "docs/README.md").read_text()
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        operations = [CommitOperationAdd(path.relative_to(root).as_posix(), str(path)) for path in files]
        operations.append(CommitOperationAdd("README.md", card.encode()))
        commit = hub.create_commit(repository, operations, commit_message=f"Version {version}")
        hub.create_tag(repository, tag=version, revision=commit.oid)
        try:
            hub.delete_tag(repository, tag="latest_version")  # which MONAI takes where no version is asked for
        except RevisionNotFoundError:
            pass  # the first version
        hub.create_tag(repository, tag="latest_version", revision=commit.oid)
    except InputError:
        raise
    except Exception as error:  # of the library, or of what it sends with
        raise RunError(f"upload to {repository} failed: {str(error).strip().partition(chr(10))[0]}") from None
    return commit.commit_url
