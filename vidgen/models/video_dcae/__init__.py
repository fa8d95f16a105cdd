"""The deep-compression video autoencoder of Open-Sora 2.0."""

from vidgen.models.video_dcae.config import VideoDCAEConfig
from vidgen.models.video_dcae.model import VideoDCAE
from vidgen.models.video_dcae.weights import load_weights, save_weights

__all__ = ["VideoDCAE", "VideoDCAEConfig", "load_weights", "save_weights"]
