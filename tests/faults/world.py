"""The inputs of the fault tests, on disk and on S3, and what a run that nothing happens to makes of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tatok_pipe import storage
from tatok_pipe.commands.demo import server as demo_server
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import token_shard_name
from tests.faults import job
from tests.faults.corpus import Corpus, write_corpus
from tests.pictures import small_tokenizer

NUM_SHARDS, NUM_IMAGES = 10, 48
NUM_TINY_SHARDS, NUM_TINY_IMAGES = 40, 3


@dataclass(frozen=True)
class World:
    """Inputs, and what every run over them has to give."""

    checkpoint: str
    local: Corpus  # ten shards of some dozens of images
    s3: Corpus
    tiny_local: Corpus  # forty shards of some images
    tiny_s3: Corpus
    server: demo_server.S3Server
    expected: dict[str, str]  # digests of the files of the undisturbed run over all corpora

    def arguments(self, corpus: Corpus, output: str, *options: str) -> list[str]:
        """The command's arguments for a run over a corpus."""
        return [
            f"input.shards={corpus.folder}", f"output.url={output}", f"tokenizer.checkpoint={self.checkpoint}",
            "encode.batch_size=16", *options,
        ]  # fmt: skip

    def expect(self, corpus: Corpus, *, without: tuple[str, ...] = ()) -> dict[str, str]:
        """Digests of what a whole run over the corpus leaves; `without` the shards of these numbers."""
        names = {token_shard_name(corpus.url(number)) for number in corpus.numbers if number not in without}
        return {path: digest for path, digest in self.expected.items() if Path(path).stem in names}


def make_world(folder: Path, s3_server: demo_server.S3Server) -> World:
    """Write the corpora, to the folder and to fixed places of the S3 server, and run the job over them once."""
    checkpoint = small_tokenizer(folder / "tokenizer")
    local = write_corpus(folder / "shards", num_shards=NUM_SHARDS, num_images=NUM_IMAGES)
    tiny_local = write_corpus(folder / "tiny", num_shards=NUM_TINY_SHARDS, num_images=NUM_TINY_IMAGES)
    prefix = f"s3://{s3_server.bucket}/faults"
    s3, tiny_s3 = local.at(f"{prefix}/shards"), tiny_local.at(f"{prefix}/tiny")
    with job.environment(s3_server.environment()):
        for source, target in ((local, s3), (tiny_local, tiny_s3)):
            for number in source.numbers:
                storage.publish_file(source.url(number), target.url(number), exclusive=True)
    # A shard's bytes name its URL but not the output's, so one run makes the reference of all.
    corpora = (local, tiny_local, s3, tiny_s3)
    listing = folder / "all.txt"
    listing.write_text("\n".join(corpus.url(number) for corpus in corpora for number in corpus.numbers))
    output = folder / "undisturbed"
    done = job.run(
        [f"input.shards=@{listing}", f"output.url={output}", f"tokenizer.checkpoint={checkpoint}",
         "encode.batch_size=16", "actors.max=1"],
        env=s3_server.environment(), folder=folder,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    _check_complete(TokenDataset(str(output)), corpora)
    return World(checkpoint, local, s3, tiny_local, tiny_s3, s3_server, job.digests(str(output)))


def _check_complete(dataset: TokenDataset, corpora: tuple[Corpus, ...]) -> None:
    """Every sample of the corpora is a row or quarantined, once for each corpus that it is in."""
    found = Counter(row.key for row in dataset.rows())
    found.update(row.key for _, row in dataset.quarantined())
    assert found == Counter(key for corpus in corpora for keys in corpus.keys.values() for key in keys)
