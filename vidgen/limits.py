"""Limits on files from outside, checked before anything is built from what they say.

Each is far above what real files need and low enough that a hostile file costs little.
"""

FRAME_PIXELS = 8192 * 4608
"""A decoded frame: 8K video passes, a small file of 16384x16384 does not."""
WORKER_BYTES = 4 << 30
"""What a decoding process may allocate beyond what it has at its start."""
HEADER_BYTES = 64 << 20
"""A safetensors header, a shard index; 100,000 tensors take about 12 MB."""
JSON_BYTES = 256 << 20
"""A JSON file of ours; the manifest of a checkpoint of 11B parameters takes about 20 MB."""
METADATA_BYTES = 1 << 20
"""What a video or an image says of itself."""
RECIPE_BYTES = 4 << 20
RECIPE_NODES = 100_000
"""Values in a recipe, those that YAML aliases repeat included."""
RECIPE_LEVELS = 50
MODEL_DEPTH = 1_000
"""Blocks of a model."""
MODEL_WIDTH = 1 << 20
"""Any one size of a model: features, heads, channels."""
MODEL_RATIO = 64
"""Hidden features of an MLP to its input's."""
TRAIN_STEPS = 1_000_000_000
SAMPLE_STEPS = 100_000
"""Solver steps of one video."""
GUIDANCE = 1000.0
"""A guidance scale, either way."""
SAMPLE_PROMPTS = 10_000
"""Prompts of one command."""
SAMPLE_VIDEOS = 100_000
"""Prompts times samples of one command."""
SAMPLE_SIDE = 1 << 14
SAMPLE_FRAMES = 1 << 16
PROMPTS_BYTES = 64 << 20
TABLE_BYTES = 4 << 30
"""A table of clips and captions."""
PROMPT_CHARACTERS = 100_000
