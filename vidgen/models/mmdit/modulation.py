"""Precomputed modulation for sampling, so that a quarter of the weights can leave the device.

Modulation depends only on a sample's conditioning vector (timestep, pooled text, guidance), not on
its tokens, and sampling knows all of these vectors in advance: 50 steps with three guidance
branches need 150 rows of about a million values, 0.3 GB in bf16 for the published model. The layers
take 6.5 GB.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vidgen.models.mmdit.model import MMDiT, Modulation


def modulation_layers(model: MMDiT) -> dict[str, nn.Module]:
    """Every layer that reads only the conditioning vector, by name, in execution order."""
    layers: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, Modulation)
    }
    layers["final_layer.adaLN_modulation"] = model.final_layer.adaLN_modulation
    return layers


class ModulationTable:
    """The modulation of given conditioning vectors, one row each."""

    def __init__(self, rows: dict[nn.Module, Tensor], count: int) -> None:
        self._rows, self.count = rows, count

    @staticmethod
    @torch.no_grad()
    def of(model: MMDiT, vec_ND: Tensor) -> "ModulationTable":
        """Compute the table on the device of `vec_ND`, which comes from `model.conditioning`.

        Layers on another device, such as the host, are copied over temporarily, one at a time.
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
        """`Seams.modulation` for a batch whose samples have these rows, in order."""

        def look_up(layer: nn.Module, vec_BD: Tensor) -> Tensor:
            found = self._rows[layer][index]
            if len(found) != len(vec_BD):
                raise ValueError(f"{len(found)} rows of modulation for {len(vec_BD)} samples")
            return found

        return look_up
