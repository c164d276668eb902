"""`python -m drpruning.cli` and `torchrun -m drpruning.cli`."""

from drpruning.cli import main

main()
