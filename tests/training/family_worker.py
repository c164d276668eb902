"""Run by torchrun in a test: every family in shards against the same model whole on each rank."""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1] / "pruning"))

from tiny_models import TOKENS, VARIANTS, masked, targets_of, tiny

from drpruning.pruning import MaskedModel
from drpruning.training.distributed import DistributedModel, clip_gradients, place_for_evaluation
from drpruning.training.validation import autocast, language_modelling_loss

LIMIT = 0.5


def step(model: MaskedModel, accelerator: Accelerator, **settings: object) -> DistributedModel:
    """Gradients of this rank's row; those of the masks are shared as the loop does it."""
    training = SimpleNamespace(compile=False, gradient_checkpointing=True, **settings)
    distributed = DistributedModel(model, training, accelerator)
    model.train()
    model.set_step(3, 0.5)
    row = TOKENS[accelerator.process_index][None].to(accelerator.device)
    language_modelling_loss(distributed.module, row).backward()
    for parameter in model.masks.parameters():
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
    return distributed


def check(variant: str, accelerator: Accelerator) -> None:
    """Gradients, their norm, the gathered model and its export are the same."""
    target = targets_of(VARIANTS[variant])["all"]
    model = masked(tiny(**VARIANTS[variant]), **target)
    sharded, half = copy.deepcopy(model), copy.deepcopy(model)
    one = step(model, accelerator, parallelism="ddp", precision="fp32")
    two = step(sharded, accelerator, parallelism="fsdp2", precision="fp32")
    assert one.parameters.keys() == two.parameters.keys()
    for name, parameter in two.parameters.items():
        gradient, expected = parameter.grad, one.parameters[name].grad
        if expected is None:
            assert gradient is None, name
            continue
        if isinstance(gradient, DTensor):
            gradient = gradient.full_tensor()
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4, msg=name)
    norms = [clip_gradients(d.parameters.values(), LIMIT) for d in (one, two)]
    torch.testing.assert_close(*norms, rtol=1e-6, atol=0)
    again = clip_gradients(two.parameters.values(), LIMIT)
    torch.testing.assert_close(again, torch.tensor(LIMIT), rtol=1e-5, atol=0)
    whole = [distributed.gather() for distributed in (one, two)]
    if accelerator.is_main_process:
        states = [w.export().state_dict() for w in whole]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    norm = clip_gradients(
        step(half, accelerator, parallelism="fsdp2", precision="bf16").parameters.values(), 1.0
    )
    torch.testing.assert_close(norm, norms[0], rtol=0.1, atol=0)
    check_evaluation(variant, accelerator)


@torch.no_grad()
def check_evaluation(variant: str, accelerator: Accelerator) -> None:
    """Only called, a model in shards gives the very logits, in bf16 too."""
    whole = tiny(**VARIANTS[variant]).eval()
    shards = copy.deepcopy(whole)
    place_for_evaluation(shards, SimpleNamespace(parallelism="fsdp2"), accelerator)
    assert all(isinstance(parameter, DTensor) for parameter in shards.parameters())
    for precision in ("fp32", "bf16"):
        with autocast(accelerator.device, precision):
            one, two = (model(TOKENS).logits for model in (whole, shards))
        assert torch.equal(one, two), precision


if __name__ == "__main__":
    ranks = Accelerator(cpu=True)
    for name in sys.argv[1:] or VARIANTS:
        check(name, ranks)
