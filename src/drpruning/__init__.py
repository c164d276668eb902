"""Prune a dense language model to an exact shape and steer its data while it recovers.

The package is made of parts that can be used on their own: `drpruning.scheduling` (which data
next), `drpruning.pruning` (which parts stay), `drpruning.data` (text to batches),
`drpruning.report` (what a run did). `drprune` on the command line runs them as one.
"""

__version__ = "0.1.0"
