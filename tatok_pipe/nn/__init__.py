"""Transformer parts that the tokenizer and the generator share."""
