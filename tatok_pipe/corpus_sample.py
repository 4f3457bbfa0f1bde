"""Some images of a corpus, tokenized here to see what all of them will take."""

from __future__ import annotations

import logging

import torch

from tatok_pipe import storage
from tatok_pipe.corpus_estimate import Sample
from tatok_pipe.images.shards import ShardError
from tatok_pipe.shard_tokenizer import ShardTokenizer, TokenizeJob

logger = logging.getLogger(__name__)

# So many images, or fewer where they take longer than this.
_MAX_IMAGES = 96
_MAX_S = 15.0


def measure_sample(
    job: TokenizeJob, shard: storage.ShardFile, *, device: str, num_threads: int
) -> Sample | None:
    """Tokenize the first images of a shard as an actor with that device and as many threads would. None, with a
    line of the log, where they cannot be read. Without the device here the speed stays unknown."""
    is_same_device = device == "cpu" or torch.cuda.is_available()
    tokenizer = ShardTokenizer(job, device=device if is_same_device else "cpu", num_threads=num_threads)
    try:
        found = tokenizer.sample(shard.url, max_images=_MAX_IMAGES, max_s=_MAX_S)
    except (OSError, ShardError) as error:
        logger.warning("no sample could be taken: %s", storage.redact(str(error)))
        return None
    finally:
        tokenizer.close()
    return Sample(
        num_images=found.num_images,
        num_bytes=found.bytes_in,
        num_tokens=found.num_tokens,
        output_bytes=found.bytes_out,
        seconds=found.seconds if is_same_device else 0.0,
    )
