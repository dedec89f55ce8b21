"""Stages `fetch` and `clipart`: Debian's packages of stamps and of clip art, by name or from a path.

Out: `data/raw/stamps/tuxpaint-stamps-default.deb`, `data/raw/clipart/openclipart-svg.deb`, and beside each
`package.json` with its version and SHA-256.
"""

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from clip4vla.corpora.stampscenes.archive import read_version
from clip4vla.utils.files import atomic_directory, write_json
from clip4vla.utils.hashing import hash_file

PACKAGE_FILE = "package.json"


@dataclass(frozen=True)
class DebianPackage:
    """A package that StampScenes is made of."""

    name: str
    megabytes: int
    setting: str
    """The key of params.yaml that may name its path."""
    destination: Path

    @property
    def deb(self) -> Path:
        """The fetched package."""
        return self.destination / f"{self.name}.deb"

    @property
    def advice(self) -> str:
        """What to do where it can't be downloaded."""
        return (
            f"StampScenes needs Debian's package {self.name} ({self.megabytes} MB). Bring the .deb from any Debian "
            f"mirror or machine (`apt-get download {self.name}`) and name its path in params.yaml under {self.setting}."
        )


STAMPS = DebianPackage("tuxpaint-stamps-default", 161, "stampscenes.package", Path("data/raw/stamps"))
CLIPART = DebianPackage("openclipart-svg", 25, "stampscenes.clipart_package", Path("data/raw/clipart"))


def fetch(package: DebianPackage, source: str | None, destination: Path) -> None:
    """Put the .deb at `source`, or the one that apt downloads, into `destination` and record what it is.

    Raises:
        ValueError: there is no apt and no path, the download failed, or the file isn't that package.
    """
    with atomic_directory(destination) as directory:
        deb = directory / package.deb.name
        if source is None:
            _download(package, deb)
        else:
            _copy(package, Path(source), deb)
        note = {"package": package.name, "version": _version(package, deb), "sha256": hash_file(deb)}
        write_json(directory / PACKAGE_FILE, note)


def fetched_version(destination: Path) -> str | None:
    """Debian's version of the package in `destination`; None where it has not been fetched."""
    path = destination / PACKAGE_FILE
    return str(json.loads(path.read_text(encoding="utf-8"))["version"]) if path.is_file() else None


def _download(package: DebianPackage, deb: Path) -> None:
    if shutil.which("apt-get") is None:
        raise ValueError(f"there is no apt-get here. {package.advice}")
    with tempfile.TemporaryDirectory() as scratch:
        run = subprocess.run(["apt-get", "download", package.name], cwd=scratch, capture_output=True, text=True)
        found = list(Path(scratch).glob("*.deb"))
        if run.returncode or not found:
            raise ValueError(
                f"apt-get could not download it: {run.stderr.strip()} (`apt-get update`?). {package.advice}"
            )
        shutil.move(found[0], deb)


def _copy(package: DebianPackage, source: Path, deb: Path) -> None:
    if not source.is_file():
        raise ValueError(f"{package.setting} names {source}, which is no file. {package.advice}")
    shutil.copyfile(source, deb)


def _version(package: DebianPackage, deb: Path) -> str:
    name, version = read_version(deb)
    if name != package.name:
        raise ValueError(f"{deb} is the package {name}, not {package.name}")
    return version
