"""What is measured, at full size on a GPU and as toys on a CPU.

The full models are those of configs/tokenizer/base.yaml and configs/ar/l.yaml, written out because the machines that
have a GPU may have no YAML reader; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.options import GeneratorConfig
from tatok_pipe.tokenizer.options import GlobalQuantizerConfig, GridStackConfig, StackConfig, TaTokConfig


@dataclass(frozen=True)
class Sizes:
    """Images, batches and models of a run. Mean tokens count globals and patches, not the condition."""

    repeats: int  # of every timing
    slow_repeats: int  # of those that take seconds
    seconds: float  # that one timing takes, about
    matmul_sides: tuple[int, ...]
    copy_bytes: int
    tokenizer: TaTokConfig
    batch_sizes: tuple[int, ...]  # images
    numerics_images: int
    script_batches: tuple[int, ...]  # images that the peer's script encodes at once
    script_images: int
    job_batch: int  # images that our job encodes at once beside it
    generator: GeneratorConfig
    row_tokens: int
    microbatch_rows: tuple[int, ...]
    step_rows: int  # of an optimizer step, TrainingConfig.batch_tokens of them
    mean_tokens: tuple[float, ...]  # of corpora; the first is what training is measured on
    padded_rows: int  # a micro-batch, at most, where packed and padded training are compared
    padded_batches: tuple[int, ...]  # there, as many of these as leave least of the last packed one empty
    sample_patches: int  # places of the generator that draws images
    sample_tokens: float  # mean of an image that is drawn
    slots: tuple[int, ...]

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokens that the tokenizer makes."""
        model = self.tokenizer
        return Vocabulary(
            model.num_globals,
            model.num_patches,
            model.global_codebook.vocab_size,
            model.patch_codebook.vocab_size,
        )

    @property
    def sample_vocabulary(self) -> Vocabulary:
        """The same with places for larger images."""
        own = self.vocabulary
        return Vocabulary(own.num_globals, self.sample_patches, own.global_vocab, own.patch_vocab)


FULL = Sizes(
    repeats=5,
    slow_repeats=3,
    seconds=0.25,
    matmul_sides=(2048, 4096, 8192),
    copy_bytes=2 << 30,
    tokenizer=TaTokConfig(
        num_globals=32, encoder=GridStackConfig(depth=6), prior=StackConfig(width=512, depth=8, heads=8)
    ),
    batch_sizes=(64, 128, 256, 512),
    numerics_images=64,
    script_batches=(1, 32),
    script_images=256,
    job_batch=256,
    generator=GeneratorConfig(width=1024, depth=24, heads=16, num_classes=1000),
    row_tokens=4096,
    microbatch_rows=(4, 8, 16),
    step_rows=64,
    mean_tokens=(107, 56),
    padded_rows=8,
    padded_batches=(4, 5, 6, 7, 8),
    sample_patches=544,
    sample_tokens=56,
    slots=(64, 256),
)

_TINY_STACK = StackConfig(width=32, depth=2, heads=2)
_TINY_GRID = GridStackConfig(width=32, depth=2, heads=2)
_TINY_CODEBOOK = GlobalQuantizerConfig(kind="fsq", levels=[4, 4])
TINY = Sizes(
    repeats=2,
    slow_repeats=1,
    seconds=0.01,
    matmul_sides=(32, 64),
    copy_bytes=1 << 20,
    tokenizer=TaTokConfig(
        image_size=32, patch_size=8, num_globals=4, search_passes=0, encoder=_TINY_GRID, decoder=_TINY_GRID,
        prior=_TINY_STACK,
        global_codebook=_TINY_CODEBOOK, patch_codebook=_TINY_CODEBOOK,
    ),
    batch_sizes=(2, 4),
    numerics_images=4,
    script_batches=(1, 2),
    script_images=8,
    job_batch=4,
    generator=GeneratorConfig(width=32, depth=2, heads=2, num_classes=10),
    row_tokens=64,
    microbatch_rows=(1, 2),
    step_rows=4,
    mean_tokens=(10, 7),
    padded_rows=2,
    padded_batches=(2, 3),
    sample_patches=24,
    sample_tokens=8,
    slots=(2, 4),
)  # fmt: skip
