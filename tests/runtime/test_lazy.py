"""A value is built once, when it is needed, and again after it is dropped."""

import threading
import time

from vidgen.runtime.lazy import Lazy


def test_built_when_needed_once_for_all_threads_and_again_after_a_drop() -> None:
    built: list[int] = []

    def build() -> int:
        time.sleep(0.05)
        built.append(1)
        return len(built)

    lazy = Lazy(build)
    assert not built
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(lazy.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 4
    lazy.drop()
    assert lazy.get() == 2


def test_a_value_that_exists_already() -> None:
    value = object()
    assert Lazy.of(value).get() is value
