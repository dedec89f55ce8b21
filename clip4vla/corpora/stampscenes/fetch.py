"""Stage `fetch`: Debian's package of stamps, by name or from a path, with its version and SHA-256 beside it.

Out: `data/raw/stamps/tuxpaint-stamps-default.deb` and `package.json`.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from clip4vla.corpora.stampscenes.archive import read_version
from clip4vla.utils.files import atomic_directory, write_json
from clip4vla.utils.hashing import hash_file

PACKAGE = "tuxpaint-stamps-default"
DESTINATION = Path("data/raw/stamps")
PACKAGE_FILE = "package.json"

BRING_IT = (
    f"StampScenes is made of Debian's package {PACKAGE} (161 MB). Bring the .deb from any Debian mirror or machine "
    f"(`apt-get download {PACKAGE}`) and name its path in params.yaml under stampscenes.package."
)


def fetch(package: str | None, destination: Path) -> None:
    """Put the package at `package`, or the one that apt downloads, into `destination` and record what it is.

    Raises:
        ValueError: there is no apt and no path, the download failed, or the file isn't that package.
    """
    with atomic_directory(destination) as directory:
        deb = directory / f"{PACKAGE}.deb"
        if package is None:
            _download(deb)
        else:
            _copy(Path(package), deb)
        write_json(directory / PACKAGE_FILE, {"package": PACKAGE, "version": _version(deb), "sha256": hash_file(deb)})


def fetched_version(destination: Path) -> str | None:
    """Debian's version of the package in `destination`; None where it has not been fetched."""
    path = destination / PACKAGE_FILE
    return str(json.loads(path.read_text(encoding="utf-8"))["version"]) if path.is_file() else None


def _download(deb: Path) -> None:
    if shutil.which("apt-get") is None:
        raise ValueError(f"there is no apt-get here. {BRING_IT}")
    with tempfile.TemporaryDirectory() as scratch:
        run = subprocess.run(["apt-get", "download", PACKAGE], cwd=scratch, capture_output=True, text=True)
        found = list(Path(scratch).glob("*.deb"))
        if run.returncode or not found:
            raise ValueError(f"apt-get could not download it: {run.stderr.strip()} (`apt-get update`?). {BRING_IT}")
        shutil.move(found[0], deb)


def _copy(source: Path, deb: Path) -> None:
    if not source.is_file():
        raise ValueError(f"stampscenes.package names {source}, which is no file. {BRING_IT}")
    shutil.copyfile(source, deb)


def _version(deb: Path) -> str:
    name, version = read_version(deb)
    if name != PACKAGE:
        raise ValueError(f"{deb} is the package {name}, not {PACKAGE}")
    return version
