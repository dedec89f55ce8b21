"""AdamW with its moments in a file, against torch's."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clip4vla.training.moments import AdamWOnDisk

SETTINGS: dict[str, Any] = {"betas": (0.9, 0.98), "eps": 1e-6, "fused": True}


def groups() -> list[dict[str, Any]]:
    """Two groups of weights of several sizes, one of which never has a gradient."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3000, 7), (1,), (17, 5), (9,))]
    return [
        {"params": weights[:2], "lr": 1e-2, "weight_decay": 0.2},
        {"params": weights[2:], "lr": 1e-3, "weight_decay": 0.0},
    ]


def go_on(optimizer: torch.optim.AdamW, steps: range) -> list[torch.Tensor]:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for weight in weights[:-1]:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad()
    return [weight.detach().clone() for weight in weights]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, found, expected))


def test_weights_are_those_of_adamw_to_the_last_bit(tmp_path: Path) -> None:
    expected = go_on(torch.optim.AdamW(groups(), **SETTINGS), range(5))
    assert same(go_on(AdamWOnDisk(groups(), tmp_path / "new", **SETTINGS), range(5)), expected)
    assert list((tmp_path / "new").iterdir()) == []


def test_its_state_goes_to_torchs_adamw_and_back(tmp_path: Path) -> None:
    through = torch.optim.AdamW(groups(), **SETTINGS)
    expected = go_on(through, range(6))
    torch_one, on_disk = torch.optim.AdamW(groups(), **SETTINGS), AdamWOnDisk(groups(), tmp_path, **SETTINGS)
    go_on(torch_one, range(2))
    torch.save(torch_one.state_dict(), tmp_path / "torch.pt")
    on_disk.load_state_dict(torch.load(tmp_path / "torch.pt"))
    for group, other in zip(on_disk.param_groups, torch_one.param_groups, strict=True):
        for weight, source in zip(group["params"], other["params"], strict=True):
            weight.data.copy_(source.data)
    middle = go_on(on_disk, range(2, 4))
    torch.save(on_disk.state_dict(), tmp_path / "disk.pt")
    on_disk.put_away()
    last = torch.optim.AdamW(groups(), **SETTINGS)
    last.load_state_dict(torch.load(tmp_path / "disk.pt"))
    for weight, value in zip((w for g in last.param_groups for w in g["params"]), middle, strict=True):
        weight.data.copy_(value)
    assert same(go_on(last, range(4, 6)), expected)
    assert same(go_on(on_disk, range(4, 6)), expected)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what of a file is in memory")
def test_after_a_step_no_moment_is_in_memory(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(4_000_000))
    optimizer = AdamWOnDisk([{"params": [weight]}], tmp_path, **SETTINGS)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert mapped_kb(tmp_path) == 0
    assert float(optimizer.state[weight]["exp_avg"][0]) == pytest.approx(0.1)
    assert mapped_kb(tmp_path) > 0


def mapped_kb(directory: Path) -> int:
    """Of files in a directory, deleted ones too, what is in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            inside = str(directory) in line
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def test_a_full_disk_is_named_with_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError, match=r"no space for Adam's moments, which take 197 kB \(No space left on device\)"):
        AdamWOnDisk(groups(), tmp_path, **SETTINGS)


def test_a_closure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a closure"):
        AdamWOnDisk(groups(), tmp_path, **SETTINGS).step(lambda: 0.0)
