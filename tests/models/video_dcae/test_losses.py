"""The losses of the autoencoder's training, and the refusals around LPIPS."""

import copy
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

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


def test_the_discriminator_has_the_published_size() -> None:
    with torch.device("meta"):
        judge = PatchGAN3D()
        scores = judge(torch.empty(1, 3, 32, 256, 256))
    convs = [module for module in judge.modules() if isinstance(module, nn.Conv3d)]
    assert [conv.out_channels for conv in convs] == [64, 128, 256, 512, 512, 512, 1]
    assert sum(conv.weight.numel() for conv in convs) == 27 * (
        3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 2 * 512 * 512 + 512
    )
    assert round(sum(p.numel() for p in judge.parameters()) / 1e6, 1) == 18.8
    assert scores.shape == (1, 1, 8, 8, 8)


def test_lpips_without_its_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; LPIPS needs .*vgg16"):
        LPIPS(tmp_path / "vgg16.pth")
    (tmp_path / "vgg16.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a file of PyTorch weights"):
        LPIPS(tmp_path / "vgg16.pth")


SHIFT, SCALE = torch.tensor([-0.03, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.45])


class OneLayer(nn.Module):
    """Stands for the package's network where it does not load: its names, one 1 x 1 convolution."""

    def __init__(self, net: str, pnet_rand: bool, verbose: bool) -> None:
        super().__init__()
        assert (net, pnet_rand, verbose) == ("vgg", True, False)
        self.net = nn.Module()
        self.net.slice1 = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
        self.lin = nn.Parameter(torch.tensor([0.5, 2.0]))

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        normal = []
        for x in (images, others):
            x = self.net.slice1((x - SHIFT.view(1, 3, 1, 1)) / SCALE.view(1, 3, 1, 1))
            normal.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        weighed = (normal[0] - normal[1]).square() * self.lin.view(1, 2, 1, 1)
        return weighed.sum(1, keepdim=True).mean((2, 3), keepdim=True)


def test_lpips_fills_its_network_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red against green and blue: features (1, 0) and (0.6, 0.8), by hand 0.5 * .16 + 2 * .64."""
    package = types.ModuleType("lpips")
    package.LPIPS = OneLayer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    weight, bias = torch.zeros(2, 3, 1, 1), torch.zeros(2)
    weight[0, 0] = weight[1, 1] = weight[0, 2] = 1
    path = tmp_path / "vgg16.pth"
    torch.save({"features.0.weight": weight, "features.0.bias": bias, "classifier.0": bias}, path)
    distance = LPIPS(path)
    features = torch.tensor([[2.0, 0, 0], [0, 4.0, 3.0]])  # after the package's scaling
    images = (features * SCALE + SHIFT).view(2, 3, 1, 1).expand(2, 3, 4, 5)
    found = distance(images[:1], images[1:])
    assert found.shape == (1,)
    assert found.item() == pytest.approx(0.5 * 0.4**2 + 2 * 0.8**2, rel=1e-5)
    assert not any(param.requires_grad for param in distance.parameters())
    assert not distance.training
    torch.save({"features.0.weight": weight[:1], "features.0.bias": bias[:1]}, path)
    with pytest.raises(UserError, match=r"holds no VGG-16 tensor features\.0\.weight"):
        LPIPS(path)


def vgg16_features() -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def vgg16(pretrained: bool) -> Any:
    assert not pretrained  # nothing is downloaded
    return types.SimpleNamespace(features=vgg16_features())


def test_lpips_of_the_package_is_its_formula(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp64 from the features of a random VGG-16 and the package's own linear weights."""
    found = importlib.util.find_spec("lpips")
    if found is None or found.origin is None:
        pytest.skip("the dcae extra is not installed")
    features = vgg16_features()
    try:
        import lpips  # noqa: F401
    except (ImportError, RuntimeError, AttributeError):
        # torchvision loads beside its own torch alone, and gives no more than this network here.
        for name in [n for n in sys.modules if n.split(".")[0] in ("lpips", "torchvision")]:
            monkeypatch.delitem(sys.modules, name)
        for name, member, value in (
            ("torchvision.models", "vgg16", vgg16),
            ("torchvision", "models", None),
            ("scipy.ndimage", "zoom", None),
            ("scipy", "ndimage", None),
        ):
            stand_in = types.ModuleType(name)
            setattr(stand_in, member, value or sys.modules.get(f"{name}.{member}"))
            monkeypatch.setitem(sys.modules, name, stand_in)
    state = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    torch.save(state, tmp_path / "vgg16.pth")
    distance = LPIPS(tmp_path / "vgg16.pth")
    images = torch.rand(2, 3, 48, 64) * 2 - 1
    others = images + 0.3 * torch.randn_like(images)
    weights = torch.load(
        Path(found.origin).parent / "weights/v0.1/vgg.pth", map_location="cpu", weights_only=True
    )
    expected = torch.zeros(2, dtype=torch.float64)
    for index, pair in enumerate(
        zip(relus(features, images), relus(features, others), strict=True)
    ):
        a, b = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in pair)
        lin = weights[f"lin{index}.model.1.weight"].double().view(1, -1, 1, 1)
        expected += ((a - b).square() * lin).sum(1).mean((1, 2))
    torch.testing.assert_close(distance(images, others).double(), expected, rtol=1e-4, atol=1e-7)
    assert distance(images, images).abs().max() < 1e-6


def relus(features: nn.Sequential, images: Tensor) -> list[Tensor]:
    """Before each halving, in fp64."""
    x = (images.double() - SHIFT.view(1, 3, 1, 1)) / SCALE.view(1, 3, 1, 1)
    found = []
    for layer in copy.deepcopy(features).double():
        if isinstance(layer, nn.MaxPool2d):
            found.append(x)
        x = layer(x)
    return found
