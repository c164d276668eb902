"""The training loop of both phases: trainers, checkpoints, ranks, validation losses, perplexity."""
