"""What runs where there is no GPU: the refusal, a part that fails, and the comparison of precisions."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.precision import compare


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no GPU here"):
        gpu.main(["--out", str(tmp_path / "gpu.json")])
    assert not list(tmp_path.iterdir())


def test_every_part_is_a_command_that_its_module_understands() -> None:
    modules = {command.split()[0] for command in gpu.PARTS.values()} - {"benchmarks.gpu"}
    for module in modules:
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        for command in gpu.PARTS.values():
            name, *words = command.split()
            options = {word for word in words if word.startswith("--")}
            assert name != module or all(option in done.stdout for option in options)


def test_a_part_that_fails_has_its_error() -> None:
    found = gpu.run("benchmarks.retrieval --galleries none")
    assert "invalid int value: 'none'" in found["error"]
    assert found["command"] == "benchmarks.retrieval --galleries none"


def test_a_part_reports_what_it_measured() -> None:
    found = gpu.run("benchmarks.retrieval --galleries 20 --queries 10 --resamples 2 --repeats 1 --device cpu")
    assert found["results"]["galleries"][0]["queries"] == 10


def test_precisions_are_compared_at_the_end_of_their_curves() -> None:
    curves = {
        "fp32": [[8.0, 4.0, 2.0, 1.0], [8.0, 4.0, 2.0, 3.0]],
        "bf16": [[8.5, 4.0, 2.0, 2.0], [8.0, 4.0, 2.0, 3.0]],
    }
    found = compare(curves)
    assert (found["fp32_end"], found["bf16_end"], found["gap"], found["first_step_gap"]) == (2.0, 2.5, 0.5, 0.5)
    assert found["noise"] == pytest.approx(2**0.5)
