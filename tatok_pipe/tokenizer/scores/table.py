"""All scores, by name, in the order in which tables have them."""

from tatok_pipe.tokenizer.scores.base import Score
from tatok_pipe.tokenizer.scores.drop_cost import DropCost
from tatok_pipe.tokenizer.scores.entropy import Entropy
from tatok_pipe.tokenizer.scores.gain import Gain
from tatok_pipe.tokenizer.scores.synthesis import Synthesis

SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Gain(),
        DropCost(),
        Entropy(),
        Synthesis(),
    )
}
