"""DINOv2 with small random weights: features per cell, and errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vidgen.errors import UserError
from vidgen.models.dinov2 import AT_ONCE, DEVIATION, MEAN, DINOv2

transformers = pytest.importorskip("transformers", reason="the text extra is not installed")
CPU = torch.device("cpu")


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8)


@pytest.fixture
def dinov2(dinov2_folder: Path) -> DINOv2:
    return DINOv2(dinov2_folder, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (2, 5), (1, 1)])
def test_a_feature_for_each_cell_is_that_of_the_patch(
    dinov2: DINOv2, dinov2_folder: Path, rows: int, columns: int
) -> None:
    x = images(2, 4 * rows, 4 * columns)  # the size at which nothing is scaled
    found = dinov2(x, rows, columns)
    assert found.shape == (2, rows, columns, dinov2.width) == (2, rows, columns, 16)
    assert not found.requires_grad
    model = transformers.Dinov2Model.from_pretrained(dinov2_folder)
    normal = (x / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    with torch.no_grad():
        states = model(pixel_values=normal.permute(0, 3, 1, 2)).last_hidden_state
    torch.testing.assert_close(found.flatten(1, 2), states[:, 1:], atol=1e-5, rtol=1e-4)


def test_an_image_is_scaled_so_that_patches_are_cells(dinov2: DINOv2) -> None:
    """Each cell of one colour: scaling by a whole number leaves the middle of a cell as it is."""
    cells = torch.randint(0, 2, (1, 3, 2, 3), dtype=torch.uint8) * 255
    small = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    large = cells.repeat_interleave(32, 1).repeat_interleave(32, 2)
    near = (dinov2(large, 3, 2) - dinov2(small, 3, 2)).abs().mean()
    other = (dinov2(large.flip(1), 3, 2) - dinov2(small, 3, 2)).abs().mean()
    assert near < 0.2 * other


def test_many_images_are_looked_at_in_parts_and_each_by_itself(dinov2: DINOv2) -> None:
    x = images(AT_ONCE + 1, 8, 8)
    found = dinov2(x, 2, 2)
    torch.testing.assert_close(found[-1:], dinov2(x[-1:], 2, 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[:1], dinov2(x[:1], 2, 2), atol=1e-5, rtol=1e-4)


def test_weights_that_are_not_there_are_refused(dinov2_folder: Path, tmp_path: Path) -> None:
    def load(path: Path) -> None:
        DINOv2(path, device=CPU, dtype=torch.float32)

    with pytest.raises(UserError, match=r"nowhere: no such folder; expected DINOv2's weights"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load(tmp_path)
    shutil.copytree(dinov2_folder, tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("layernorm.weight")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 'layernorm\.weight' and 0 more tensors of DINOv2"):
        load(tmp_path / "a")
    weights.write_bytes(b"\x08")
    with pytest.raises(UserError, match="cannot be loaded as DINOv2"):
        load(tmp_path / "a")
    weights.unlink()
    with pytest.raises(UserError, match="cannot be loaded as DINOv2"):
        load(tmp_path / "a")
    config = json.loads((dinov2_folder / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(UserError, match="is a vit model; expected dinov2"):
        load(tmp_path / "a")
