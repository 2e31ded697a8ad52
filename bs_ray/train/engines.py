"""Engines step a network's optimizer, alone or over workers. The one doorway to DeepSpeed.

They share one protocol (`Engine`) and one portable state: whole fp32 parameters and Adam's moments
by name. So a checkpoint can be continued by another engine and another number of workers.

The optimizer is AdamW at a constant learning rate: there is no schedule, since a slider's few
hundred steps end before one would matter, and a resumed run needs no more state.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

State = dict[str, Tensor]
"""`weight/<name>`, `exp_avg/<name>`, `exp_avg_sq/<name>` (float32, on the CPU) and `step`."""
_MOMENTS = ("exp_avg", "exp_avg_sq")
_CLIP_NORM = 1.0


class Engine(Protocol):
    """A network under training."""

    module: nn.Module
    """The bare network. Another engine's loss must use it instead of calling this engine."""

    def __call__(self, *inputs: Any) -> Tensor:
        """The network's forward pass; `backward_and_step` must follow it."""

    def backward_and_step(self, loss: Tensor) -> None:
        """Average the gradients of `loss` [] over the workers and step the optimizer."""

    def step_with(self, gradients: Sequence[Tensor]) -> None:
        """The same with gradients that are at hand, one for each parameter. What they were made of
        went through `module`, not through this engine."""

    def named_full_parameters(self) -> dict[str, Tensor]:
        """Whole fp32 parameters by name. Every worker must call it."""

    def state(self) -> State:
        """The portable state. Every worker must call it, after at least one step."""

    def load_state(self, state: State) -> None:
        """Continue from `state`. Every worker must call it, after at least one step of any batch,
        since optimizers make their moments on their first step."""


def mean_over_workers(values: Tensor) -> Tensor:
    """The mean of `values` over the workers; `values` themselves without torch.distributed."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def over_workers(value: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Every worker's value, in the order of their ranks."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _adamw(module: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    # Fused: one pass over a slider's hundreds of small factors, also on the CPU.
    return torch.optim.AdamW(module.parameters(), lr=lr, betas=betas, fused=True)


class PlainEngine:
    """Plain torch; gradients are averaged with torch.distributed where it is initialised."""

    def __init__(self, module: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.99)):
        self.module = module
        self.optimizer = _adamw(module, lr, betas)

    def __call__(self, *inputs: Any) -> Tensor:
        return self.module(*inputs)

    def backward_and_step(self, loss: Tensor) -> None:
        self.backward(loss)
        self.step()

    def backward(self, loss: Tensor) -> None:
        """The gradients of `loss`, averaged over the workers, not yet clipped."""
        loss.backward()
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                mean_over_workers(parameter.grad)

    def step_with(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self.module.parameters(), gradients, strict=True):
            parameter.grad = mean_over_workers(gradient)
        self.step()

    def step(self) -> None:
        """Clip the gradients, step the optimizer, and clear the gradients."""
        nn.utils.clip_grad_norm_(self.module.parameters(), _CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def full_gradients(self) -> dict[str, Tensor | None]:
        """Whole gradients by name, between `backward` and `step`."""
        return {name: p.grad for name, p in self.module.named_parameters()}

    def named_full_parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters()}

    def state(self) -> State:
        return _plain_state(self.module, self.optimizer)

    def load_state(self, state: State) -> None:
        _load_plain_state(self.module, self.optimizer, state)


class _Network(nn.Module):
    """A network, or gradients for it, in the one form in which DeepSpeed takes either: a forward
    pass, to whose output it ties its hooks."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, gradients: Sequence[Tensor] = ()) -> Tensor:
        if not gradients:
            output: Tensor = self.module(*inputs)
            return output
        pairs = zip(self.module.parameters(), gradients, strict=True)
        return torch.stack([(parameter * gradient).sum() for parameter, gradient in pairs]).sum()


class DeepSpeedEngine:
    """DeepSpeed with ZeRO stage 0-3 over the workers of torch.distributed.

    The networks here are small (a slider, a discriminator), so stage 3, too, keeps their parameters
    whole on every worker and shards gradients and optimizer state. The frozen base is what is
    large; no engine holds it, and at stage 3 `shard_frozen` shards it.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        *,
        zero_stage: int = 2,
    ):
        deepspeed = _import_deepspeed(next(module.parameters()).device)
        self.stage = zero_stage
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # batches.py deals the rows
            "gradient_clipping": _CLIP_NORM,
            "steps_per_print": sys.maxsize,
            "zero_optimization": {
                "stage": zero_stage,
                # The default buffers are sized for language models: gigabytes.
                "reduce_bucket_size": 5_000_000,
                "allgather_bucket_size": 5_000_000,
                "stage3_param_persistence_threshold": sys.maxsize,
            },
        }
        # Our own optimizer: "Adam" by name would compile FusedAdam on first use (89 s).
        self.engine = deepspeed.initialize(
            model=_Network(module), optimizer=_adamw(module, lr, betas), config=config
        )[0]
        self.module = module
        if zero_stage == 3:
            self._keep_parameters_whole()

    def _keep_parameters_whole(self) -> None:
        """Gather the parameters now; after each step the optimizer gathers those that "persist".

        The hooks that would fetch and release them layer by layer are removed. They allow for one
        forward and one backward in a step; in further ones, such as the gradient penalty and the
        slider's loss through the discriminator, they leave empty parameters behind.
        """
        offload = self.engine.optimizer.parameter_offload
        for hook in [*offload.forward_hooks, *offload.backward_hooks]:
            hook.remove()
        parameters: list[Any] = list(self.module.parameters())
        parameters[0].all_gather(parameters)

    def __call__(self, *inputs: Any) -> Tensor:
        return self.engine(*inputs)

    def backward_and_step(self, loss: Tensor) -> None:
        self.backward(loss)
        self.step()

    def backward(self, loss: Tensor) -> None:
        """The gradients of `loss`, averaged over the workers, not yet clipped."""
        self.engine.backward(loss)

    def step_with(self, gradients: Sequence[Tensor]) -> None:
        self.backward_and_step(self.engine(gradients=gradients))

    def step(self) -> None:
        """Clip the gradients, step the optimizer, and clear the gradients."""
        self.engine.step()

    def full_gradients(self) -> dict[str, Tensor | None]:
        """Whole gradients by name, between `backward` and `step`. Every worker must call it."""
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(p) for name, p in self.module.named_parameters()}

    def named_full_parameters(self) -> dict[str, Tensor]:
        if self.stage == 0:
            return {name: p.detach() for name, p in self.module.named_parameters()}
        from deepspeed.utils import safe_get_full_fp32_param

        return {n: safe_get_full_fp32_param(p) for n, p in self.module.named_parameters()}

    def state(self) -> State:
        if self.stage == 0:
            return _plain_state(self.module, self.engine.optimizer)
        from deepspeed.utils import safe_get_full_optimizer_state

        found = {f"weight/{n}": p.cpu() for n, p in self.named_full_parameters().items()}
        for name, parameter in self.module.named_parameters():
            for moment in _MOMENTS:
                whole = safe_get_full_optimizer_state(parameter, moment)
                found[f"{moment}/{name}"] = whole.detach().cpu().clone()
        first = next(iter(self.engine.optimizer.optimizer.state.values()))
        return found | {"step": torch.tensor(float(first["step"]))}

    def load_state(self, state: State) -> None:
        if self.stage == 0:
            _load_plain_state(self.module, self.engine.optimizer, state)
            return
        for name, parameter in self.module.named_parameters():
            self._set(parameter, "weight", state[f"weight/{name}"])
            for moment in _MOMENTS:
                self._set(parameter, moment, state[f"{moment}/{name}"])
        for moments in self.engine.optimizer.optimizer.state.values():
            # Without Adam's step its bias correction would start over. In place, for fused Adam
            # refuses a step that is not on its parameter's device.
            moments["step"].fill_(float(state["step"]))

    def _set(self, parameter: Any, what: str, whole: Tensor) -> None:
        """Write one whole tensor into this worker's share of it."""
        from deepspeed import utils

        whole = whole.to(parameter.device)
        if what == "weight":
            # The copy that the next forward reads; the optimizer's own copy is set below.
            parameter.data.copy_(whole)
        if self.stage < 3:
            if what == "weight":
                utils.safe_set_full_fp32_param(parameter, whole)
            else:
                utils.safe_set_full_optimizer_state(parameter, whole, what)
            return
        # At stage 3 safe_set_full_* fails where a size is no multiple of the workers, so pad here.
        size, rank = parameter.partition_numel(), dist.get_rank()
        flat = nn.functional.pad(whole.flatten(), (0, size * dist.get_world_size() - whole.numel()))
        share = flat[size * rank : size * (rank + 1)]
        if what == "weight":
            parameter.ds_tensor.data.copy_(share)
            utils.safe_set_local_fp32_param(parameter, share)
        else:
            utils.safe_set_local_optimizer_state(parameter, share, what)


def shard_frozen(network: nn.Module) -> None:
    """Leave each worker 1/N of a frozen network's parameters, gathered block by block when needed.

    They are gathered for a block's forward and again for its backward pass, and released after
    each. Every worker must call it, and must from then on run the network as often as the others.

    This uses torch's FSDP2 rather than DeepSpeed's ZeRO 3, whose hooks follow one recorded order of
    layers in a step and release them by counting uses. Here a step goes through the base several
    times, with and without gradients, and not the same way every time; FSDP2 gathers what is
    called.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(network.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    # The classes that diffusers itself would not split over devices: its blocks.
    blocks = set(getattr(network, "_no_split_modules", None) or ())
    for module in reversed(list(network.modules())):  # inner ones first
        if module is network or type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _import_deepspeed(device: torch.device) -> Any:
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        # Without this it compiles a shared-memory reduction on first use, which takes a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _plain_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    found: State = {}
    for name, parameter in module.named_parameters():
        moments = optimizer.state[parameter]
        found[f"weight/{name}"] = parameter.detach().cpu().clone()
        for moment in _MOMENTS:
            found[f"{moment}/{name}"] = moments[moment].cpu().clone()
        found["step"] = torch.tensor(float(moments["step"]))
    return found


def _load_plain_state(module: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    for name, parameter in module.named_parameters():
        parameter.data.copy_(state[f"weight/{name}"])
        moments = optimizer.state[parameter]
        for moment in _MOMENTS:
            moments[moment].copy_(state[f"{moment}/{name}"])
        moments["step"].fill_(float(state["step"]))  # in place: fused Adam has it on its device
