"""The video diffusion transformer of Open-Sora 2.0 and FLUX."""

from vidgen.models.mmdit.config import PRESETS, MMDiTConfig
from vidgen.models.mmdit.model import MMDiT, Seams, patchify, unpatchify

__all__ = ["MMDiT", "MMDiTConfig", "PRESETS", "Seams", "patchify", "unpatchify"]
