"""The devices and ranks of this process; loads PyTorch."""

from datetime import timedelta
from typing import TYPE_CHECKING

from drpruning.common.console import Reporter
from drpruning.recipe import Training

if TYPE_CHECKING:
    from accelerate import Accelerator


def start_accelerator(reporter: Reporter, training: Training) -> "Accelerator":
    """Load PyTorch and find the devices and ranks, as a launcher set them up."""
    with reporter.status("loading PyTorch and Transformers"):
        import torch
        from accelerate import Accelerator, InitProcessGroupKwargs

        from drpruning.models.loading import quiet_libraries
        from drpruning.training.distributed import check_device

    quiet_libraries()
    check_device()
    timeout = timedelta(minutes=training.rank_timeout)
    # The trainer sets the precision itself, whatever the launcher's configuration says.
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
    )
