"""The shipped model: weights and the record of its training, as package data.

`vidgen demo` makes these files again; `vidgen sample demo` reads them.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
GENERATOR, AUTOENCODER = "generator.safetensors", "autoencoder.safetensors"
