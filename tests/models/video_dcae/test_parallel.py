"""The Video DC-AE divided over ranks: output and gradients of a single process."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidgen.models.video_dcae import VideoDCAE, VideoDCAEConfig
from vidgen.models.video_dcae.parallel import divide
from vidgen.runtime.parallel.conv import InputSplitConv, OutputSplitConv, own_part

CONFIG = VideoDCAEConfig(
    latent_channels=8, widths=(8, 8, 16, 32, 32, 32), encoder_depths=(1,) * 6,
    decoder_depths=(1,) * 6, head_dim=8,
)  # fmt: skip


def start(rank: int, world: int, folder: Path) -> dist.ProcessGroup:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    group = dist.group.WORLD
    assert group is not None
    return group


def whole_model() -> VideoDCAE:
    torch.manual_seed(0)
    model = VideoDCAE(CONFIG).double()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn_like(param) * (0.5 / max(1, param[0].numel()) ** 0.5))
            if param.dim() == 1:
                param.add_(0.5)
    return model


def run(model: VideoDCAE, clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    clip = clip.clone().requires_grad_()
    reconstruction, latent = model(clip)
    (reconstruction.square().sum() + latent.sin().sum()).backward()
    assert clip.grad is not None
    return reconstruction.detach(), latent.detach(), clip.grad


def every_gradient(rank: int, world: int, folder: Path) -> dict[str, float]:
    group = start(rank, world, folder)
    clip = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    whole, parts = whole_model(), divide(whole_model(), group)
    expected, found = run(whole, clip), run(parts, clip)
    errors = {
        what: _error(a, b)
        for what, a, b in zip(("output", "latent", "input's"), found, expected, strict=True)
    }
    gradient_of = gradients_by_value(whole)
    for name, param in parts.named_parameters():
        assert param.grad is not None, name
        values = param.detach().flatten().tolist()
        full = torch.tensor([gradient_of[value] for value in values], dtype=torch.float64)
        errors[name] = _error(param.grad.flatten(), full)
    dist.destroy_process_group()
    return errors


def gradients_by_value(model: VideoDCAE) -> dict[float, float]:
    """No two weights are equal, so a weight's value says which one it is."""
    found: dict[float, float] = {}
    for param in model.parameters():
        assert param.grad is not None
        found.update(zip(param.flatten().tolist(), param.grad.flatten().tolist(), strict=True))
    assert len(found) == sum(param.numel() for param in model.parameters())
    return found


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("world", [2, 4])
def test_output_and_every_gradient_are_a_single_process_s(ranks: Any, world: int) -> None:
    for errors in ranks(every_gradient, world):
        assert max(errors.values()) < 1e-10, max(errors, key=errors.get)


def halves(rank: int, world: int, folder: Path) -> list[float]:
    """One convolution with a bias, by its outputs and by its inputs."""
    group = start(rank, world, folder)
    torch.manual_seed(0)
    whole = nn.Conv3d(8, 4 * world, 3, padding=1).double()
    x = torch.randn(2, 8, 3, 4, 5, dtype=torch.float64)
    expected = whole(x)
    rows = own_part(whole.out_channels, group, "rows")
    columns = own_part(whole.in_channels, group, "columns")
    joined = OutputSplitConv(whole, group, rows, joined=True)(x)
    summed = InputSplitConv(whole, group, columns)(x[:, columns])
    dist.destroy_process_group()
    return [_error(joined, expected), _error(summed, expected)]


def test_one_convolution_by_outputs_and_by_inputs(ranks: Any) -> None:
    for errors in ranks(halves, 2):
        assert max(errors) < 1e-12


def refused(rank: int, world: int, folder: Path) -> str:
    group = start(rank, world, folder)
    try:
        divide(VideoDCAE(CONFIG), group)
    except ValueError as error:
        return str(error)
    finally:
        dist.destroy_process_group()
    return "taken"


def test_channels_that_do_not_divide_are_named(ranks: Any) -> None:
    for message in ranks(refused, 3):
        assert "encoder.stages.0.blocks.0.conv1: 8 channels do not divide over 3 ranks" in message
