"""The ways in which bytes reach a disk."""

import pytest

from vidgen.runtime import native
from vidgen.runtime.checkpoint import transfer
from vidgen.runtime.checkpoint.transfer import Method

WAYS = {
    "ring": Method(engine=True, uring=True, direct=True, why_not=""),
    "threads": Method(engine=True, uring=False, direct=True, why_not=""),
    "cached": Method(engine=True, uring=False, direct=False, why_not=""),
    "plain": Method(engine=False, uring=False, direct=False, why_not="a test asks for it"),
}


@pytest.fixture(params=WAYS)
def way(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """All of a test's checkpoints are written in this way."""
    name: str = request.param
    method = WAYS[name]
    module = native.load()
    if not method.engine:
        monkeypatch.setattr(transfer, "engine", lambda: None)
    elif module is None:
        pytest.skip(native.reason())
    elif method.uring and (why := module.io_why_not_uring()):
        pytest.skip(f"no io_uring: {why}")
    elif method.direct and (why := module.io_why_not_direct(str(tmp_path_factory.getbasetemp()))):
        pytest.skip(f"no O_DIRECT: {why}")
    monkeypatch.setattr(transfer, "method", lambda directory: method)
    return name
