"""Peaks are correct, measured if unknown, and utilisation is relative to them."""

import pytest
import torch

from vidgen.runtime.observe import mfu as module
from vidgen.runtime.observe.mfu import Peak, hfu, known_peak, measure_matmul, mfu, peak


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA B200", 2250),
    ],
)
def test_bf16_peak_by_name(name, tflops):
    assert known_peak(name, torch.bfloat16) == tflops * 1e12


@pytest.mark.parametrize("name", ["cpu", "NVIDIA GB200", "NVIDIA H200 MIG 1g.18gb", "Radeon"])
def test_unknown_devices_have_no_figure(name):
    assert known_peak(name, torch.bfloat16) is None


def test_float32_follows_the_tf32_setting(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert known_peak("NVIDIA H200", torch.float32) == 67e12
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert known_peak("NVIDIA H200", torch.float32) == 495e12


def test_float8_and_what_the_table_lacks():
    assert known_peak("NVIDIA H200", torch.float8_e4m3fn) == 1979e12
    assert known_peak("NVIDIA A100-SXM4-80GB", torch.float8_e4m3fn) is None


def test_cpu_peak_is_measured_and_says_so():
    found = peak("cpu", torch.float32)
    assert found.measured
    assert found.flops_per_s > 1e8
    assert "measured" in str(found)
    assert "float32 on cpu" in str(found)
    assert peak("cpu", torch.float32) is found  # measured once


def test_measured_rate_is_the_best_of_the_sizes(monkeypatch):
    sizes = []

    def fake_seconds(work, device):
        size = work.args[0].shape[0]
        sizes.append(size)
        return 2 * size**3 / {512: 1e12, 1024: 3e12, 2048: 2e12}[size]

    monkeypatch.setattr(module, "_seconds", fake_seconds)
    monkeypatch.setattr(module.time, "perf_counter", lambda: 0.0)
    rate = measure_matmul(torch.device("cpu"), torch.float32, budget_s=0.1)
    assert rate == pytest.approx(3e12)
    assert sorted(set(sizes)) == [512, 1024, 2048]  # a 4096 product would pass the budget


def test_utilisation():
    rated = Peak(1e12, "bfloat16", "test", measured=False)
    assert mfu(4e12, seconds=2, peak=rated, devices=4) == pytest.approx(0.5)
    assert hfu(6e12, seconds=2, peak=rated, devices=4) == pytest.approx(0.75)
