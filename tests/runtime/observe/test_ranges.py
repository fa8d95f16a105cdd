"""Ranges appear in a profile when on and cost nothing when off."""

import sys
from types import SimpleNamespace

import pytest
import torch

from vidgen.runtime.observe import ranges
from vidgen.runtime.observe.ranges import recording, span


@pytest.fixture
def nvtx_installed(monkeypatch):
    """Stands in for the nvtx package, or for its absence: nvtx_installed(module or None)."""

    def install(module):
        monkeypatch.setitem(sys.modules, "nvtx", module)
        ranges._package.cache_clear()

    yield install
    ranges._package.cache_clear()


def names_profiled(work):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return {event.name for event in profile.events()}


def spanned():
    with span("outer"), span("inner"):
        torch.zeros(2) + 1


def test_off_marks_nothing_and_allocates_nothing():
    assert span("a") is span("b")
    assert not {"outer", "inner"} & names_profiled(spanned)


def test_on_marks_ranges():
    with recording():
        assert {"outer", "inner"} <= names_profiled(spanned)
    assert span("a") is span("b")


def test_recording_ends_with_an_exception():
    with pytest.raises(RuntimeError), recording():
        raise RuntimeError
    assert span("a") is span("b")


def test_the_nvtx_package_marks_ranges_without_cuda(nvtx_installed):
    stack, seen = [], []
    nvtx_installed(
        SimpleNamespace(push_range=stack.append, pop_range=lambda: seen.append(stack.pop()))
    )
    spanned()
    assert not seen
    with recording():
        spanned()
    assert seen == ["inner", "outer"]
    assert not stack


def test_without_cuda_and_the_package_nothing_initialises_it(monkeypatch, nvtx_installed):
    nvtx_installed(None)
    monkeypatch.setattr(ranges.torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(ranges.torch.cuda.nvtx, "range_push", lambda name: pytest.fail("pushed"))
    with recording():
        assert {"outer", "inner"} <= names_profiled(spanned)


def test_nvtx_is_balanced_when_cuda_is_in_use(monkeypatch, nvtx_installed):
    nvtx_installed(None)
    stack, seen = [], []
    monkeypatch.setattr(ranges.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(ranges.torch.cuda.nvtx, "range_push", lambda n: stack.append(n))
    monkeypatch.setattr(ranges.torch.cuda.nvtx, "range_pop", lambda: seen.append(stack.pop()))
    with recording(), pytest.raises(RuntimeError), span("outer"), span("inner"):
        raise RuntimeError
    assert seen == ["inner", "outer"]
