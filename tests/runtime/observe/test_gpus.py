"""One table of accelerators for the planner and for MFU."""

import pytest

from vidgen.errors import UserError
from vidgen.runtime.observe.gpus import GPUS, board_tflops, gpu_named, of_device


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A1000", None),
    ],
)
def test_the_board_decides_the_peak(device: str, tflops: float | None) -> None:
    assert board_tflops(device).get("bfloat16") == tflops


def test_the_planners_gpus_have_the_peaks_of_their_boards() -> None:
    for gpu in GPUS.values():
        assert gpu.flops == board_tflops(f"NVIDIA {gpu.name.upper()}")["bfloat16"] * 1e12
        assert of_device(f"NVIDIA {gpu.name.upper()} 80GB") is gpu
    assert of_device("NVIDIA L4") is None


def test_a_collective_beyond_a_node_takes_the_network() -> None:
    gpu = gpu_named("H200")
    assert gpu.link(8) == 450e9
    assert gpu.link(9) == 50e9


def test_an_unknown_name_is_told_its_neighbour() -> None:
    with pytest.raises(UserError, match=r"'h20' \(did you mean h200"):
        gpu_named("h20")
