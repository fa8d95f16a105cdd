"""Training: recipes in, checkpoints and metrics out."""

from vidgen.train.trainer import Trainer

__all__ = ["Trainer"]
