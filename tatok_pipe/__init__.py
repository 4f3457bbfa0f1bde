"""tatok_pipe: turn an image corpus into adaptive discrete tokens, and tokens into a generator.

The tokenizer is TaTok (arXiv 2605.16384): global tokens, patch tokens and Dynamic Token Filtering.
"""

__version__ = "0.1.0"
