"""The parts of a pipeline, each built when it is first asked for."""

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Part(Generic[T]):
    """Dropped when its memory is needed, it is built again when it is asked for again."""

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self._built: T | None = None

    @staticmethod
    def of(value: T) -> "Part[T]":
        return Part(lambda: value)

    def get(self) -> T:
        if self._built is None:
            self._built = self._build()
        return self._built

    @property
    def built(self) -> T | None:
        return self._built

    def drop(self) -> None:
        self._built = None
