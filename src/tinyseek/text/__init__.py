"""From raw files to batches of token ids; nothing here imports torch."""
