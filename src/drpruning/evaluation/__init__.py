"""What is measured after training."""

from drpruning.evaluation.perplexity import evaluate_perplexity, write_evaluation

__all__ = ["evaluate_perplexity", "write_evaluation"]
