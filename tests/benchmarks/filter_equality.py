"""Whether a token dataset that is filtered again is, byte by byte, the one that a fresh run would have made.

    python -m tests.benchmarks.filter_equality SHARDS --tokenizer URL [--score NAME …] [--rule NAME …] [--target TOKENS]

Both by the commands that users have. A table of all rules on all scores; the exit code is 1 where a file differs. Two
rules that keep the same patches would say less than they seem to: the digests of what they wrote stand beside.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tatok_pipe.api import TokenDataset
from tatok_pipe.edit_tokens import main as edit_tokens
from tatok_pipe.tokenize_corpus import main as tokenize_corpus
from tatok_pipe.tokenizer.rules import RULES
from tatok_pipe.tokenizer.scores.table import SCORES


def run(entry: Callable[[list[str]], int], *words: str) -> float:
    """Seconds that it took."""
    begin = time.monotonic()
    code = entry([*words])
    assert code == 0, (words, code)
    return time.monotonic() - begin


def digests(url: str) -> dict[str, str]:
    """SHA-256 of each file that has rows, or says why there are none."""
    return {
        f"{part}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("data", "quarantine")
        for path in sorted(Path(url, part).glob("*"))
    }


def compare(shards: str, tokenizer: str, score: str, rules: Sequence[str], target: int, folder: str) -> bool:
    """Whether all are equal; prints a line for each rule."""
    whole, is_equal = f"{folder}/{score}", True
    source = [f"input.shards={shards}", f"tokenizer.checkpoint={tokenizer}", "record.scores=true"]
    run(tokenize_corpus, *source, f"output.url={whole}", f"dtf.score={score}", "dtf.rule=none")
    for rule in rules:
        fresh, again = f"{folder}/{score}-{rule}-fresh", f"{folder}/{score}-{rule}-again"
        tokens = [] if rule == "none" else [target]
        given = [f"dtf.score={score}", f"dtf.rule={rule}", *(f"dtf.target_tokens={each}" for each in tokens)]
        fresh_s = run(tokenize_corpus, *source, f"output.url={fresh}", *given)
        given = [each.replace("dtf.", "filter.") for each in given]
        given += [f"input.url={whole}", f"tokenizer.checkpoint={tokenizer}"]
        again_s = run(edit_tokens, *given, f"output.url={again}")
        found, expected = digests(again), digests(fresh)
        same = found == expected
        is_equal &= same
        statistics = TokenDataset(again).statistics
        written = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()
        print(
            f"{score:10} {rule:13} {statistics.num_images:7,} images {statistics.mean_tokens:7.1f} tokens/image  "
            f"{'equal' if same else 'DIFFERS'}  {written[:12]}  "
            f"fresh {fresh_s:.0f} s, again {again_s:.1f} s",
            flush=True,
        )
    return is_equal


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("shards", metavar="SHARDS")
    parser.add_argument("--tokenizer", default="packaged")
    parser.add_argument("--score", nargs="+", default=list(SCORES), choices=SCORES)
    parser.add_argument("--rule", nargs="+", default=list(RULES), choices=RULES)
    parser.add_argument("--target", type=int, default=36)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        results = [
            compare(args.shards, args.tokenizer, score, args.rule, args.target, folder)
            for score in args.score
        ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
