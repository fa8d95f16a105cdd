"""The attention backends, in order of preference when nothing has been measured."""

from vidgen.runtime.attention.native_op import NATIVE_CPU, NATIVE_CUDA
from vidgen.runtime.attention.package_backends import FLASH2, FLASH3, FLASH4, SAGE
from vidgen.runtime.attention.torch_backends import (
    CUDNN,
    FLEX,
    MATH,
    SDPA_EFFICIENT,
    SDPA_FLASH,
    SDPA_FLASH_CPU,
)

# On a CPU this order always decides: nothing is timed, so that runs repeat bit for bit.
TABLE = (
    NATIVE_CPU,
    SDPA_FLASH_CPU,
    FLASH4,
    FLASH3,
    CUDNN,
    FLASH2,
    SDPA_FLASH,
    NATIVE_CUDA,
    SDPA_EFFICIENT,
    FLEX,
    MATH,
    SAGE,
)
