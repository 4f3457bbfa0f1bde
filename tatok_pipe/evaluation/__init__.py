"""What a tokenizer, its tokens and a generator are worth: metrics, tests and pictures on images. Knows no Ray."""
