"""Running a model: many texts at once over a paged cache, sampled, constrained, compiled where it pays."""
