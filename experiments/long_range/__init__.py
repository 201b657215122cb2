"""What attention changed: LSTMs and a Transformer on tasks whose dependencies have known lengths, and on Multi30k."""
