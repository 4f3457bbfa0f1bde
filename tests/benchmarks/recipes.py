"""What parts of a tokenizer's recipe are worth: variants of it, trained and measured alike, and its spread over seeds.

    python -m tests.benchmarks.recipes CONFIG --shards GLOB --held-out GLOB [--seeds 0 1 2] [--output FOLDER]
        [--variants NAME ...] [OPTION=VALUE ...]

The options are train_tokenizer's and go to every training. A training that ended is not run again. Figures are those
that each training writes into its `tokenizer.json`: held-out PSNR, the same count of patches kept in every image.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf

from tatok_pipe.tokenizer.training_options import DecoderMixConfig
from tests.benchmarks.tokenizer.report import table

SCORE = "gain"
PREFIX = "prefix (nested dropout)"
FILE = "tokenizer/tokenizer.json"
_ALL_KEPT = [
    f"training.decoder_mix.{kind}=0"
    for kind in ("gain", "drop_cost", "entropy", "synthesis", "random", "prefix", "globals_only")
]


def variants(training: dict[str, Any]) -> dict[str, list[str]]:
    """Names and the options in which they differ from the config, given its section `training`. The first is what the
    others are compared with."""
    mix = DecoderMixConfig()
    return {
        "recipe": [],
        "trained with all patches kept": _ALL_KEPT,
        "patches alone": [*_ALL_KEPT, "model.num_globals=0"],
        # As tokenizers of one dimension do it: the masks of the recipe's scores are prefixes, in training and after.
        PREFIX: [
            "training.decoder_mix.gain=0",
            "training.decoder_mix.synthesis=0",
            f"training.decoder_mix.prefix={mix.gain + mix.synthesis:g}",
        ],
        # Equal steps of joint training after the decoder's: what reading each other is worth to the tokens.
        "joint training, tokens from linear maps": _joint(training, depth=0),
        "joint training, patches and globals attend": _joint(training, depth=2),
        # It has as many steps of joint training before the decoder's own.
        "random start": [
            "training.start=random",
            f"training.joint_steps={training['decoder_steps']}",
            f"training.learning_rate={training['decoder_learning_rate']}",
        ],
    }


def _joint(training: dict[str, Any], *, depth: int) -> list[str]:
    return [f"model.encoder.depth={depth}", f"training.joint_steps={2 * training['decoder_steps']}"]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("config", help="of train_tokenizer")
    parser.add_argument("--shards", required=True, help="image shards to train on")
    parser.add_argument("--held-out", required=True, help="image shards to measure on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="of the table's rows; else all")
    parser.add_argument("--output", type=Path, default=Path("runs/recipes"), help="folder of the trainings")
    options, more = parser.parse_known_args(argv)
    config: Any = OmegaConf.load(options.config)
    known = variants(config.training)
    header, rows = [], []
    for name in options.variants or known:
        cards = []
        for seed in options.seeds:
            output = options.output / f"{name.replace(' ', '-')}-{seed}"
            if not (output / FILE).exists():
                command = [
                    *(sys.executable, "-m", "tatok_pipe.train_tokenizer", options.config),
                    *(f"output.url={output}", f"seed={seed}"),
                    *(f"input.shards={options.shards}", f"validation.shards={options.held_out}"),
                    *known[name],
                    *more,
                ]
                subprocess.run(command, check=True)
            cards.append(json.loads((output / FILE).read_text())["training"]["held_out"])
        kept = [f"{row['kept_share']:.0%}" for row in cards[0]["filtered"]]
        header = [f"held-out PSNR, dB; patches kept by `{SCORE}`", "all", *kept, "none"]
        score = "prefix" if name == PREFIX else SCORE
        rows.append([name, *cells([figures(card, score) for card in cards])])
    print(table(header, rows))
    return 0


def figures(held_out: dict[str, Any], score: str) -> list[float]:
    """Of one training, as `header` names them."""
    kept = [row["psnr"][score] for row in held_out["filtered"]]
    return [held_out["psnr_none"], *kept, held_out["psnr_globals_only"]]


def cells(seeds: list[list[float]]) -> list[str]:
    """Means over the seeds and, of several, the standard deviation."""
    columns = [list(column) for column in zip(*seeds, strict=True)]
    return [
        f"{mean(each):.2f} ± {stdev(each):.2f}" if len(each) > 1 else f"{each[0]:.2f}" for each in columns
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
