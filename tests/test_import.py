"""Importing vidgen loads nothing heavy and changes no global state."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Loaded only inside the functions that need them.
LAZY = {"av", "pyarrow", "transformers", "diffusers", "tensorboard", "sentencepiece"}
# Modules that are themselves the optional part, and are imported lazily by the rest of vidgen.
OPTIONAL = ("vidgen.runtime.ops.triton.", "vidgen._native", "vidgen.__main__")

# Runs in a fresh interpreter: a list of every module, and one snapshot of the global state.
COMMON = """
import gc, importlib, json, locale, logging, os, pkgutil, random, signal, sys, threading, warnings
import numpy, torch

def modules():
    import vidgen
    names = ["vidgen"] + [m.name for m in pkgutil.walk_packages(vidgen.__path__, "vidgen.")]
    return [n for n in names if not n.startswith(tuple(json.loads(sys.argv[1])))]

def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask

def signals():
    names = sorted(signal.valid_signals())
    return {str(s): str(signal.getsignal(s)) for s in names}

def loggers():
    every = [logging.root, *logging.root.manager.loggerDict.values()]
    return {l.name: [l.level, l.propagate, [type(h).__name__ for h in l.handlers]]
            for l in every if isinstance(l, logging.Logger) and (l.handlers or l.level)}

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "torch threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "grad mode": torch.is_grad_enabled(),
        "deterministic": [torch.are_deterministic_algorithms_enabled(),
                          torch.is_deterministic_algorithms_warn_only_enabled()],
        "matmul precision": [torch.get_float32_matmul_precision(),
                             torch.backends.cuda.matmul.allow_tf32,
                             torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
                             torch.backends.cudnn.deterministic],
        "sdp": [torch.backends.cuda.flash_sdp_enabled(),
                torch.backends.cuda.mem_efficient_sdp_enabled(),
                torch.backends.cuda.math_sdp_enabled()],
        "cuda started": torch.cuda.is_initialized(),
        "sharing strategy": torch.multiprocessing.get_sharing_strategy(),
        "start method": torch.multiprocessing.get_start_method(allow_none=True),
        "torch random": hash(torch.get_rng_state().numpy().tobytes()),
        "numpy random": hash(str(numpy.random.get_state())),
        "python random": hash(random.getstate()),
        "numpy errors": numpy.geterr(),
        "print options": str(numpy.get_printoptions()) + str(vars(torch._tensor_str.PRINT_OPTS)),
        "warnings": [str(f) for f in warnings.filters],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": umask(),
        "signals": signals(),
        "gc": [gc.isenabled(), list(gc.get_threshold()), gc.get_debug()],
        "loggers": loggers(),
        "threads": sorted(t.name for t in threading.enumerate()),
        "hooks": [str(sys.excepthook), str(threading.excepthook), str(sys.gettrace())],
        "recursion limit": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
        "path": sys.path,
    }
"""

LIST = """
for name in modules():
    importlib.import_module(name)
json.dump([n for n in sys.modules if n.split(".")[0] not in ("vidgen", "__main__")], sys.stdout)
"""

# What libraries do when they are imported is theirs to answer for: they are loaded first.
COMPARE = """
for name in json.load(open(sys.argv[2])):
    try:
        importlib.import_module(name)
    except Exception:
        pass  # an alias a library put there, not a module of its own
changes, before = {}, state()
for name in modules():
    importlib.import_module(name)
    after = state()
    changed = {k: [before[k], after[k]] for k in after if before[k] != after[k]}
    if changed:
        changes[name] = changed
    before = after
json.dump(changes, sys.stdout)
"""


def python(source: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", source, json.dumps(OPTIONAL), *arguments],
        capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def loaded() -> list[str]:
    """Every library module in memory once all of vidgen has been imported."""
    found: list[str] = json.loads(python(COMMON + LIST))
    return found


def test_importing_every_module_changes_no_global_state(loaded: list[str], tmp_path: Path) -> None:
    names = tmp_path / "modules.json"
    names.write_text(json.dumps(loaded))
    changes = json.loads(python(COMMON + COMPARE, str(names)))
    assert not changes, f"imports with side effects: {json.dumps(changes, indent=1)[:4000]}"


def test_a_change_would_be_seen() -> None:
    probe = "a = state(); import gc; gc.disable(); os.environ['X'] = '1'; b = state()\n"
    seen = python(COMMON + probe + "print([k for k in a if a[k] != b[k]])")
    assert seen.strip() == "['environment', 'gc']"


def test_optional_libraries_stay_unloaded(loaded: list[str]) -> None:
    assert not LAZY & {name.split(".")[0] for name in loaded}


@pytest.mark.parametrize("module", ["vidgen", "vidgen.errors", "vidgen.cli.main"])
def test_the_door_is_light(module: str) -> None:
    """`vidgen --help` and `import vidgen` answer at once: torch takes seconds to load."""
    loaded = python(f"import {module}, sys; print(*sys.modules)").split()
    heavy = {"torch", "numpy", *LAZY}
    assert not heavy & set(loaded)
