"""How well images come back from all their tokens, beside codecs at equal bits."""
