"""A value built when it is first needed."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Lazy(Generic[T]):
    """Built once, by whichever thread needs it first; again when needed after `drop`."""

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._built: T | None = None

    @staticmethod
    def of(value: T) -> "Lazy[T]":
        return Lazy(lambda: value)

    def get(self) -> T:
        with self._lock:
            if self._built is None:
                self._built = self._build()
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()  # another thread may use it on another stream
            return self._built

    def drop(self) -> None:
        with self._lock:
            self._built = None
