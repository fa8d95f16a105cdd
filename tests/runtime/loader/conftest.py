"""Worker processes import the tests' requests by their module, from where this process does."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
