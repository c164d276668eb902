"""Training on several ranks: the model in shards or replicas, and what all ranks must agree on."""

import copy
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from drpruning.common.errors import BadInput
from drpruning.pruning import MaskedModel, ModelShape
from drpruning.recipe import Training
from drpruning.training.validation import autocast, language_modelling_loss


def hardware(device: torch.device, processes: int) -> str:
    """What a run is trained on, for people: ``8 × NVIDIA H100``, ``CPU with 16 threads``.

    Args:
        device: That of this rank.
        processes: How many ranks there are.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"CPU with {threads} thread{'s' if threads > 1 else ''}"
    else:
        name = device.type.upper()
    return f"{processes} × {name}" if processes > 1 else name


def check_device() -> None:
    """Refuse a rank for which this machine has no GPU.

    Raises:
        BadInput: `LOCAL_RANK` is not the number of one of its GPUs, if it has any.
    """
    rank, devices = os.environ.get("LOCAL_RANK", "0"), torch.cuda.device_count()
    if devices and int(rank) >= devices:
        raise BadInput(
            f"LOCAL_RANK={rank}: this machine has {devices} GPU{'s' if devices > 1 else ''}; start "
            f"at most {devices} on it (--nproc-per-node={devices})"
        )


def broadcast_ratio(ratio: Mapping[str, float]) -> dict[str, float]:
    """Rank 0's ratio, on every rank, to the bit."""
    state = PartialState()
    if state.num_processes == 1:
        return dict(ratio)
    shares = torch.tensor(list(ratio.values()), dtype=torch.float64, device=state.device)
    return dict(zip(ratio, broadcast(shares).tolist(), strict=True))


def any_rank(accelerator: Accelerator, here: bool) -> bool:  # noqa: FBT001 - an answer, not an option
    """Whether something is true on any rank; every rank calls this and gets the same answer."""
    if accelerator.num_processes == 1:
        return here
    flag = torch.tensor(float(here), device=accelerator.device)
    return bool(accelerator.reduce(flag).item())


class DistributedModel:
    """A plain or masked model as this rank trains it. Every rank calls every method.

    Masks and multipliers are replicated; `PruningTrainer` averages their gradients.

    Attributes:
        module: What is called; compiled and with gradient checkpointing as the recipe says.
        parameters: Name in the given model -> what the optimizer trains, in float32.
        sharded: Whether each rank holds only its part of every weight.
        precision: What autocast is left to do: nothing (`fp32`) where the weights are cast before.
    """

    def __init__(self, model: nn.Module, training: Training, accelerator: Accelerator) -> None:
        """Put a model on this rank's device, in place; shards replace its parameters.

        Args:
            model: A float32 Transformers model, or one with masks, the same on every rank.
            training: Gives parallelism, precision, compilation and checkpointing.
            accelerator: Gives device and ranks.
        """
        self._accelerator, self._given = accelerator, model
        self._inner = model.model if isinstance(model, MaskedModel) else model
        several = accelerator.num_processes > 1
        self.sharded = several and training.parallelism == "fsdp2"
        self.precision = "fp32" if self.sharded else training.precision
        self._blank = _without_weights(model) if self.sharded else None
        if training.gradient_checkpointing:
            # Transformers renamed it within version 5.
            newer = getattr(self._inner, "activation_checkpointing_enable", None)
            (newer or self._inner.gradient_checkpointing_enable)({"use_reentrant": False})  # type: ignore[operator]
        if self.sharded:
            half = torch.bfloat16 if training.precision == "bf16" else None
            shard(self._inner, accelerator, half, compiled=training.compile)
        elif training.compile:
            self._inner.compile()
        model.to(accelerator.device)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._use(self._replicated() if several and not self.sharded else self._inner)

    def _replicated(self) -> nn.Module:
        device = self._accelerator.device
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            self._inner, device_ids=devices, gradient_as_bucket_view=True
        )

    def _use(self, inner: nn.Module) -> None:
        self._wrapped = self.module = inner
        if isinstance(self._given, MaskedModel):
            self._given.model, self.module = inner, self._given

    def warm_up(self, rows: int, length: int) -> None:
        """Let DDP arrange its buckets of gradients, which it does once, after its first pass.

        The arrangement decides in which order gradients are summed. Without a pass beforehand, the
        first step of a resumed run would be summed in another order than in an uninterrupted one.

        Args:
            rows: Blocks in a micro-batch.
            length: Tokens in a block.
        """
        if not isinstance(self._wrapped, DistributedDataParallel):
            return
        device = self._accelerator.device
        blocks_BT = torch.zeros((rows, length), dtype=torch.long, device=device)
        self.module.train()
        with autocast(device, self.precision):
            loss = language_modelling_loss(self.module, blocks_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        self.module.zero_grad(set_to_none=True)

    def gradients_shared(self, *, last: bool) -> AbstractContextManager[None]:
        """Around a micro-batch: DDP shares gradients in the last one of a step only."""
        if last or not isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext()
        return self._wrapped.no_sync()

    def nonfinite_parameters(self) -> list[str]:
        """Names of the parameters with numbers that are not finite, the same on every rank."""
        flags = torch.stack(
            [(~_local(p.detach()).isfinite()).any().float() for p in self.parameters.values()]
        )
        flags = self._accelerator.reduce(flags.to(self._accelerator.device))
        return [name for name, flag in zip(self.parameters, flags.tolist(), strict=True) if flag]

    def gather(self) -> nn.Module:
        """The model with complete weights on the main process, once training is over.

        Sharded weights are gathered one after the other, in the same order on every rank because
        gathering is collective, and each moves to the main process's CPU at once: so a device never
        holds more than one of them. On the other ranks the model has no weights then.
        """
        if self._blank is None:
            self._use(self._inner)
            return self._given
        places = dict(self._blank.named_parameters())
        filled: dict[nn.Parameter, nn.Parameter] = {}
        for name, parameter in self.parameters.items():
            value = parameter.detach()
            gathered = value.full_tensor() if isinstance(value, DTensor) else value
            if self._accelerator.is_main_process:
                filled[places[name]] = nn.Parameter(gathered.cpu())
        for module in self._blank.modules() if filled else ():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, filled[parameter])
        return self._blank


def place_for_evaluation(model: nn.Module, training: Training, accelerator: Accelerator) -> None:
    """Put a model that is only called on this rank's device, in place; in shards as in training.

    Weights travel in float32, so that autocast computes what it does on one rank.

    Args:
        model: A float32 Transformers model, the same on every rank.
        training: Gives the parallelism.
        accelerator: Gives device and ranks.
    """
    if accelerator.num_processes > 1 and training.parallelism == "fsdp2":
        shard(model, accelerator)
    model.to(accelerator.device).eval()


def _local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard(
    model: nn.Module,
    accelerator: Accelerator,
    dtype: torch.dtype | None = None,
    *,
    compiled: bool = False,
) -> None:
    """Shard layer after layer, so that a device holds one complete layer at a time, at most."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in model.get_submodule(ModelShape.of(model).family.layers).children():
        if compiled:
            layer.compile()
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy of a module whose parameters take no memory; one under two names stays one."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach().to("meta")) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most the limit, in place.

    Args:
        parameters: Sharded or replicated; gradients of the latter are the same on every rank.
        limit: Largest norm.

    Returns:
        The norm before, the same on every rank; not finite where a gradient is not.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    shards = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    replicated = [g for g in gradients if not isinstance(g, DTensor)]
    norm = torch.nn.utils.get_total_norm(replicated)
    if shards:
        square = torch.nn.utils.get_total_norm(shards).double().square()
        torch.distributed.all_reduce(square)
        norm = (square + norm.double().square()).sqrt().float()
    torch._foreach_mul_([*shards, *replicated], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
