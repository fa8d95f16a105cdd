"""Modulation tabulated before sampling: a quarter of the model's weights may then stay away.

Modulation layers see only the conditioning vector of a sample (timestep, pooled text, guidance),
never its tokens. Sampling knows all of these vectors beforehand: 50 steps of three guidance
branches need 150 rows of about a million numbers, 0.3 GB in bf16 for the published model, where
the layers themselves take 6.5 GB.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vidgen.models.mmdit.model import MMDiT, Modulation


def modulation_layers(model: MMDiT) -> dict[str, nn.Module]:
    """Every layer that reads the conditioning vector alone, by name, in the order they run."""
    layers: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, Modulation)
    }
    layers["final_layer.adaLN_modulation"] = model.final_layer.adaLN_modulation
    return layers


class ModulationTable:
    """The modulation of chosen conditioning vectors, a row for each."""

    def __init__(self, rows: dict[nn.Module, Tensor], count: int) -> None:
        self._rows, self.count = rows, count

    @staticmethod
    @torch.no_grad()
    def of(model: MMDiT, vec_ND: Tensor) -> "ModulationTable":
        """`vec_ND` comes from `model.conditioning`; the table lies where it lies.

        Layers that live elsewhere (in host memory, say) come over one at a time and leave nothing.
        """
        rows = {}
        for layer in modulation_layers(model).values():
            weights = {name: param.to(vec_ND.device) for name, param in layer.named_parameters()}
            rows[layer] = functional_call(layer, weights, (vec_ND,))
        return ModulationTable(rows, len(vec_ND))

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self._rows.values())

    def rows(self, index: slice | Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
        """`Seams.modulation` for a batch whose samples have these rows, in this order."""

        def look_up(layer: nn.Module, vec_BD: Tensor) -> Tensor:
            found = self._rows[layer][index]
            if len(found) != len(vec_BD):
                raise ValueError(f"{len(found)} rows of modulation for {len(vec_BD)} samples")
            return found

        return look_up
