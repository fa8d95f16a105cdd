"""LPIPS through the lpips package, with VGG-16 weights from a file; downloads nothing."""

from pathlib import Path

import torch
from torch import Tensor, nn

from vidgen.errors import UserError


class LPIPS(nn.Module):
    """Perceptual distance of images (N, 3, H, W) in [-1, 1]: (N,), 0 for equal ones."""

    def __init__(self, path: str | Path) -> None:
        """`path` is torchvision's VGG-16 file (vgg16-397923af.pth, ImageNet weights)."""
        super().__init__()
        weights = _vgg_features(Path(path))
        try:
            import lpips
        except (ImportError, RuntimeError, OSError) as error:
            raise UserError(
                f"LPIPS needs the packages lpips and torchvision ({error}): "
                'pip install "vidgen[dcae]"'
            ) from error
        # The package contains LPIPS' linear weights; the backbone is filled from the file.
        self.model = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        backbone = self.model.net.state_dict()
        for name, target in backbone.items():  # slice3.10.weight is VGG's features.10.weight
            layer = name.split(".", 1)[1]
            if layer not in weights or weights[layer].shape != target.shape:
                raise UserError(f"{path}: holds no VGG-16 tensor features.{layer}")
            target.copy_(weights[layer])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        distances: Tensor = self.model(images, others)
        return distances.flatten()


def _vgg_features(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; LPIPS needs torchvision's VGG-16 weights (vgg16-397923af.pth)"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: is not a file of PyTorch weights ({error})") from error
    return {
        name.removeprefix("features."): tensor
        for name, tensor in state.items()
        if name.startswith("features.")
    }
