"""DINOv2 patch features of images, through transformers, with weights from a folder."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from vidgen.errors import UserError

# ImageNet's mean and deviation of colours in [0, 1], as in DINOv2's training.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AT_ONCE = 32  # images per batch, to bound memory


class DINOv2:
    """A frozen DINOv2 that computes one feature per cell of a grid over an image."""

    def __init__(self, path: str | Path, *, device: torch.device, dtype: torch.dtype) -> None:
        """`path` is a folder with config.json and model.safetensors, such as a download of
        facebook/dinov2-large."""
        folder = Path(path).expanduser()
        if not (folder / "config.json").is_file():
            found = "holds no config.json" if folder.is_dir() else "no such folder"
            raise UserError(
                f"{path}: {found}; expected DINOv2's weights, such as a download of "
                "facebook/dinov2-large"
            )
        transformers = _transformers()
        kind, _ = transformers.PretrainedConfig.get_config_dict(folder, local_files_only=True)
        if kind.get("model_type") != "dinov2":
            raise UserError(f"{path}: is a {kind.get('model_type')} model; expected dinov2")
        self._model = _load(transformers.Dinov2Model, path, folder, dtype).to(device)
        config = self._model.config
        self.width: int = config.hidden_size
        self.patch: int = config.patch_size
        self._device, self._dtype = device, dtype

    @torch.no_grad()
    def __call__(self, images_NHWC: Tensor, rows: int, columns: int) -> Tensor:
        """Features (N, rows, columns, width) of uint8 images, resized so that one patch covers one
        cell."""
        parts = [self._features(part, rows, columns) for part in images_NHWC.split(AT_ONCE)]
        return torch.cat(parts)

    def _features(self, images_NHWC: Tensor, rows: int, columns: int) -> Tensor:
        count = len(images_NHWC)
        x = images_NHWC.to(self._device).permute(0, 3, 1, 2).float() / 255
        size = (rows * self.patch, columns * self.patch)
        x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, deviation = (x.new_tensor(each).view(3, 1, 1) for each in (MEAN, DEVIATION))
        pixels = ((x - mean) / deviation).to(self._dtype)
        found: Tensor = self._model(pixel_values=pixels).last_hidden_state
        return found[:, 1:].reshape(count, rows, columns, self.width)  # token 0 is the class token


def _load(kind: Any, path: str | Path, folder: Path, dtype: torch.dtype) -> Any:
    try:
        model, loaded = kind.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: cannot be loaded as DINOv2: {first}") from error
    # By default transformers initialises missing tensors randomly.
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(
            f"{path}: lacks '{missing[0]}' and {len(missing) - 1} more tensors of DINOv2"
        )
    return model.eval().requires_grad_(False)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            'DINOv2 needs the transformers package: pip install "vidgen[text]"'
        ) from error
    return transformers
