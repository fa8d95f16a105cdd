"""The losses of the autoencoder's training, and the refusals around LPIPS."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vidgen.errors import UserError
from vidgen.models.perceptual import LPIPS
from vidgen.models.video_dcae.discriminator import PatchGAN3D
from vidgen.models.video_dcae.losses import adaptive_weight, hinge, l1, perceptual_distance


def test_l1_is_a_mean_over_everything() -> None:
    video = torch.zeros(2, 3, 4, 5, 6)
    assert l1(video + 0.25, video).item() == pytest.approx(0.25)


def test_perceptual_distance_sees_every_frame_once() -> None:
    seen: list[int] = []

    def distance(a: Tensor, b: Tensor) -> Tensor:
        assert a.shape[1:] == (3, 5, 6)
        seen.append(len(a))
        return (a - b).abs().mean(dim=(1, 2, 3))

    video = torch.randn(2, 3, 9, 5, 6)
    other = video + torch.arange(9.0).view(9, 1, 1)
    assert perceptual_distance(distance, other, video).item() == pytest.approx(4.0, rel=1e-5)
    assert seen == [16, 2]


def test_hinge_is_zero_where_the_discriminator_is_sure() -> None:
    sure, unsure = torch.full((4,), 2.0), torch.zeros(4)
    assert hinge(sure, -sure).item() == 0
    assert hinge(unsure, unsure).item() == pytest.approx(1.0)
    assert hinge(-sure, sure).item() == pytest.approx(3.0)


def test_the_adaptive_weight_balances_the_pulls_on_the_last_layer() -> None:
    last = nn.Parameter(torch.randn(5))
    x = torch.randn(5)
    ours, theirs = 3 * (last * x).sum(), 0.5 * (last * x).sum()
    weight = adaptive_weight(ours, theirs, last)
    assert weight.item() == pytest.approx(6.0, rel=1e-3)
    assert not weight.requires_grad
    assert adaptive_weight(ours, theirs * 0, last).item() == 1e4  # no pull at all: bounded


def test_the_discriminator_learns_to_tell() -> None:
    torch.manual_seed(0)
    judge = PatchGAN3D(width=8, layers=3, dropout=0.0)
    judge.init_weights()
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    real, fake = torch.randn(4, 3, 8, 16, 16), torch.randn(4, 3, 8, 16, 16).abs()
    first = None
    for _ in range(15):
        loss = hinge(judge(real), judge(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = first if first is not None else loss.item()
    assert loss.item() < 0.6 * first
    assert judge(real[:, :, :1]).shape[2] == 1  # images have patches too


def test_lpips_without_its_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; LPIPS needs .*vgg16"):
        LPIPS(tmp_path / "vgg16.pth")
    (tmp_path / "vgg16.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a file of PyTorch weights"):
        LPIPS(tmp_path / "vgg16.pth")


def test_lpips_is_zero_for_equal_images_and_grows(tmp_path: Path) -> None:
    try:
        import lpips  # noqa: F401
        import torchvision
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"lpips or torchvision does not load: {error}")
    torch.manual_seed(0)
    vgg = torchvision.models.vgg16(weights=None)
    torch.save(vgg.state_dict(), tmp_path / "vgg16.pth")
    distance = LPIPS(tmp_path / "vgg16.pth")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    near, far = (distance(images, images + s * torch.randn_like(images)) for s in (0.05, 0.5))
    assert distance(images, images).abs().max() < 1e-6
    assert (near < far).all()
    assert torch.equal(
        dict(distance.model.net.named_parameters())["slice1.0.weight"], vgg.features[0].weight
    )
