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


def torchcodec(purpose: str) -> ModuleType:
    """Its module of decoders."""
    try:
        from torchcodec import decoders
    except ImportError as error:
        raise UserError(
            f'{purpose} with data.decoder=torchcodec needs the package "torchcodec", which is not '
            'installed: pip install "vidgen[torchcodec]"'
        ) from error
    except (OSError, RuntimeError) as error:  # no FFmpeg that it knows, or another torch's build
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{purpose} with data.decoder=torchcodec: it does not load ({reason}). It wants this "
            "machine's FFmpeg libraries (apt install ffmpeg) and the release made for this torch; "
            "data.decoder=pyav brings its own"
        ) from error
    return decoders
