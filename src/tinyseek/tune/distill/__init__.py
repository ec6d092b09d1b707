"""A student learns from a teacher: from its answers (collect, pairs), its probabilities (logits), on its own words (on_policy)."""
