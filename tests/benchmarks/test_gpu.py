"""What runs where there is no GPU: the refusal, a part that fails, and the comparison of precisions."""

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.precision import compare


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no GPU here"):
        gpu.main(["--out", str(tmp_path / "gpu.json")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", [part for part in gpu.PARTS if part != "ceilings"])
def test_every_part_is_a_command_that_its_module_understands(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *words = gpu.PARTS[part].split()
    with pytest.raises(SystemExit, match="0"):
        import_module(name).main(["--help"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in words if word.startswith("--"))


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
