"""vidgen: a compiled runtime for training and sampling video diffusion transformers.

Importing this package loads nothing heavy and changes no global state; take what you need from
`vidgen.runtime`, `vidgen.models`, `vidgen.train` and `vidgen.sample`.
"""

from vidgen.version import __version__

__all__ = ["__version__"]
