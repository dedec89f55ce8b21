"""The miniature packages, and parameters small enough for it."""

from pathlib import Path

import pytest
import yaml

from clip4vla.config import StampScenesConfig
from clip4vla.rehearsal.stamp_package import write_clipart_package, write_stamp_package
from tests.project import REPOSITORY, TINY_CONFIG

SAMPLES = Path(__file__).parents[1] / "data" / "corpora"


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stamp_package(tmp_path_factory.mktemp("package") / "stamps.deb")


@pytest.fixture(scope="session")
def clipart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clipart_package(tmp_path_factory.mktemp("package") / "clipart.deb")


@pytest.fixture(scope="session")
def stampscenes_config() -> StampScenesConfig:
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))["stampscenes"]
    return StampScenesConfig.model_validate(tree | TINY_CONFIG["stampscenes"])
