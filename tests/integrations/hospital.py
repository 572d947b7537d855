"""An archive and a viewer on this machine: Orthanc with its DICOMweb plugin, and OHIF, set up by `docs/hospital`."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import requests

from tests.integrations.consumers import ROOT, free_port, python_of, run, serving

PLACES = os.pathsep.join((os.environ["PATH"], "/usr/sbin"))
OHIF, PLUGIN = ROOT / ".venv-ohif/package/dist", Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
BROWSER = shutil.which("chromium", path=PLACES)
FOUND = {
    "orthanc": shutil.which("Orthanc", path=PLACES),
    "orthanc-dicomweb": PLUGIN.is_file(),
    "nginx-light": shutil.which("nginx", path=PLACES),
    "chromium": BROWSER,
    "@ohif/app of npm": OHIF.is_dir(),
}
MISSING = [name for name, found in FOUND.items() if not found]


class Hospital(NamedTuple):
    """Addresses of a running archive and viewer."""

    dicomweb: str
    viewer: str

    def dicomweb_client(self, *words: object) -> None:
        """Run dicomweb-client's own command on the archive."""
        run(python_of("ohif").parent / "dicomweb_client", "--url", self.dicomweb, *words)

    def store(self, *files: Path) -> None:
        self.dicomweb_client("store", "instances", *files)

    def fetch(self, study: str, series: str, folder: Path) -> Path:
        """Save a series' files in a new folder, and return it."""
        folder.mkdir()
        words = ["--study", study, "--series", series, "full", "--save", "--output-dir", folder]
        self.dicomweb_client("retrieve", "series", *words)
        return folder

    def series(self, study: str, modality: str) -> list[str]:
        """Return the UIDs of a study's series of a modality, as the archive answers a QIDO request."""
        headers = {"Accept": "application/dicom+json"}
        reply = requests.get(f"{self.dicomweb}/studies/{study}/series", {"Modality": modality}, headers=headers)
        reply.raise_for_status()
        return [found["0020000E"]["Value"][0] for found in reply.json()]

    def show(self, study: str, segmentation: str, slice_: tuple[int, int], folder: Path) -> dict:
        """Open a segmentation in OHIF: names and colours it lists, errors of the page, the picture of the slice.

        Args:
            study: StudyInstanceUID.
            segmentation: Description of its series.
            slice_: InstanceNumber of the slice to look at, and the number of slices.
            folder: New folder for the pictures.
        """
        folder.mkdir()
        job = {"url": f"{self.viewer}/viewer?StudyInstanceUIDs={study}", "segmentation": segmentation}
        job |= {"browser": BROWSER, "window": str(folder / "window.png"), "slice": str(folder / "slice.png")}
        job |= dict(zip(("instance", "slices"), slice_))
        (folder / "job.json").write_text(json.dumps(job))
        done = run(python_of("ohif"), Path(__file__).with_name("ohif_browser.py"), folder / "job.json")
        return json.loads(done.stdout) | {"slice": folder / "slice.png"}


@contextmanager
def hospital(folder: Path) -> Iterator[Hospital]:
    """Start archive and viewer as the documentation says, at free ports of the loopback address."""
    archive, viewer = free_port(), free_port()
    for file in sorted((ROOT / "docs/hospital").iterdir()):
        text = file.read_text().replace("8042", str(archive)).replace("8080", str(viewer))
        (folder / file.name).write_text(text)
    for name in ("db", "tmp"):
        (folder / name).mkdir()
    (folder / "ohif").symlink_to(OHIF)
    running = Hospital(f"http://127.0.0.1:{archive}/dicom-web", f"http://127.0.0.1:{viewer}")
    orthanc = [FOUND["orthanc"], folder / "orthanc.json"]
    nginx = [FOUND["nginx-light"], "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf"]
    with serving(orthanc, folder / "orthanc.log", f"{running.dicomweb}/studies", cwd=folder):
        with serving(nginx, folder / "nginx.log", f"{running.viewer}/dicom-web/studies", cwd=folder):
            yield running
