"""The optional packages that reading clips and manifests needs, or one line on how to get them."""

from types import ModuleType

from vidgen.errors import UserError

_HINT = 'needs the package "{}", which is not installed: pip install "vidgen[video]"'


def pyav(purpose: str) -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise UserError(f"{purpose} {_HINT.format('av')}") from error
    return av


def pyarrow(purpose: str) -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet  # a submodule: not loaded by the line above
    except ImportError as error:
        raise UserError(f"{purpose} {_HINT.format('pyarrow')}") from error
    return pyarrow
