"""The video diffusion transformer of Open-Sora 2.0 and FLUX."""

from vidgen.models.mmdit.config import PRESETS, MMDiTConfig
from vidgen.models.mmdit.model import MMDiT, Seams, patchify, unpatchify
from vidgen.models.mmdit.modulation import ModulationTable, modulation_layers
from vidgen.models.mmdit.weights import load_weights, save_weights

__all__ = [
    "MMDiT",
    "MMDiTConfig",
    "load_weights",
    "save_weights",
    "PRESETS",
    "Seams",
    "ModulationTable",
    "modulation_layers",
    "patchify",
    "unpatchify",
]
