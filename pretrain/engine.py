"""DeepSpeed behind four verbs: forward, backward, step, and the state that this rank owns.

DeepSpeed partitions, reduces, keeps fp32 masters and runs the optimizer. Ours are the loop, the loss scaling, the
learning rate and the checkpoint format; so accumulation is unmanaged (any number of backward passes, then one step),
clipping is always written out (DeepSpeed's default changed from 0 to 1) and no DeepSpeed scheduler exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config import OptimizerConfig, Recipe
from pretrain.distributed import World
from pretrain.errors import PretrainError
from pretrain.optim import build_optimizer, new_state, state_kinds
from pretrain.ranger import centralise_now

# DeepSpeed keys that the recipe or the loop decides, with the recipe's key to use instead.
OWNED_KEYS = {
    "train_batch_size": "batch.sequences",
    "train_micro_batch_size_per_gpu": "batch.tokens_per_micro_batch",
    "gradient_accumulation_steps": "batch.tokens_per_micro_batch",
    "managed_gradient_accumulation": "nothing: it must stay off",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bf16": "compute.precision",
    "fp16": "compute.precision",
    "torch_autocast": "compute.precision",
}


@dataclass
class Fragment:
    """A part of one parameter that this rank owns: places [start, start + len) of the flattened tensor.

    ``master`` and ``states`` are views on the optimizer's own memory; writing to them changes the training state.
    """

    name: str
    start: int
    master: Tensor  # [n] fp32
    states: dict[str, Tensor]  # kind -> [n] fp32


@dataclass
class StepResult:
    gradient_norm: float  # before clipping, of the whole global batch
    applied: bool  # False: a gradient was not finite and nothing changed, on any rank


class Engine:
    """A model under DeepSpeed.

    ``model``: fp32, on the CPU, with the weights to start from; DeepSpeed takes it over. Their fp32 values become the
    masters even where the model itself computes in bf16.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, world: World):
        import deepspeed

        self.world = world
        self.stage = recipe.deepspeed.zero_stage
        self.clipping = recipe.optimizer.gradient_clipping
        self.centralises_late = recipe.optimizer.clip_before_centralising
        self.kinds = state_kinds(recipe.optimizer)
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        model.to(world.device)
        fused = world.device.type == "cuda" and not recipe.deepspeed.offload
        optimizer = build_optimizer(model, recipe.optimizer, fused)
        self.base = optimizer
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(recipe), dist_init_required=False
        )
        if recipe.compute.compile:
            self.deepspeed.compile(compile_kwargs={"dynamic": True})
        self._norm = float("nan")
        if self.stage == 0:
            optimizer.register_step_pre_hook(self._clip_or_skip)
        self._create_optimizer_state(recipe.optimizer)
        for fragment in self.fragments():
            n = fragment.master.numel()
            fragment.master.copy_(weights[fragment.name].flatten()[fragment.start : fragment.start + n])
            if "slow" in fragment.states:  # lookahead starts from the exact weights too
                fragment.states["slow"].copy_(fragment.master)

    @property
    def module(self) -> nn.Module:
        """What an objective calls; forward under the recipe's precision."""
        return self.deepspeed

    def backward(self, loss_sum: Tensor, global_weight: float) -> None:
        """Add the gradient of ``loss_sum / global_weight``. DeepSpeed averages over ranks, hence the factor."""
        self.deepspeed.backward(loss_sum * (self.world.ranks / max(global_weight, 1.0)), scale_wrt_gas=False)

    def step(self, learning_rate: float) -> StepResult:
        for group in self.base.param_groups:
            group["lr"] = learning_rate
        self.deepspeed.step()
        if self.stage == 0:
            return StepResult(self._norm, applied=_finite(self._norm))
        norm = float(self.deepspeed.get_global_grad_norm())
        return StepResult(norm, applied=bool(self.deepspeed.was_step_applied()))

    def _clip_or_skip(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Stage 0: DeepSpeed neither reports the norm there nor skips a step that is not finite.

        Gradients are reduced already, so every rank sees the same norm. A parameter without gradient is left alone by
        the optimizer, its step count included.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._norm = float(norm)
        if not _finite(self._norm):
            for parameter in parameters:
                parameter.grad = None
        elif self.clipping > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clipping, norm)
        if self.centralises_late:
            centralise_now(parameters)

    def _create_optimizer_state(self, config: OptimizerConfig) -> None:
        """The state that the optimizer creates on its first step, so that it can be saved and loaded at any time."""
        if self.stage == 3:  # lists its tensors in the optimizer's groups only while it steps
            held = list(self.optimizer.fp32_partitioned_groups_flat)
        else:
            held = [tensor for group in self.base.param_groups for tensor in group["params"]]
        fused = self.base.defaults.get("fused")
        for tensor in held:
            step = torch.zeros((), dtype=torch.float32, device=tensor.device if fused else "cpu")
            self.base.state[tensor] = {"step": step, **new_state(config, tensor)}
        if self.stage in (1, 2):
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def fragments(self) -> Iterator[Fragment]:
        """The parts of every parameter that this rank holds masters and optimizer state of, in parameter order.

        At stage 0 every rank holds everything.
        """
        for name, parameter in self.deepspeed.module.named_parameters():
            if self.stage == 0:
                states = {kind: self.base.state[parameter][kind].view(-1) for kind in self.kinds}
                yield Fragment(name, 0, parameter.data.view(-1), states)
            elif self.stage in (1, 2):
                mapping = parameter._hp_mapping
                if mapping is not None:
                    states = {kind: mapping.get_hp_fragment(kind) for kind in self.kinds}
                    yield Fragment(name, mapping.lp_fragment_address.start, mapping.get_hp_fragment().data, states)
            else:
                yield from self._stage3_fragment(name, parameter)

    def _stage3_fragment(self, name: str, parameter: nn.Parameter) -> Iterator[Fragment]:
        """Stage 3 cuts every parameter into equal parts, one per rank; the last ones may be padding."""
        group, offset, size = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
        flat = self.optimizer.fp32_partitioned_groups_flat[group]
        start = size * self.world.rank
        real = min(size, parameter.ds_numel - start)  # type: ignore[attr-defined]  # DeepSpeed's own
        if real > 0:
            states = {kind: self.base.state[flat][kind].narrow(0, offset, real) for kind in self.kinds}
            yield Fragment(name, start, flat.data.narrow(0, offset, real), states)

    @property
    def optimizer_steps(self) -> int:
        """Updates that the optimizer has applied; Adam's bias correction depends on it."""
        return int(next(iter(self.base.state.values()))["step"])

    @optimizer_steps.setter
    def optimizer_steps(self, steps: int) -> None:
        for state in self.base.state.values():
            state["step"].fill_(steps)


def deepspeed_config(recipe: Recipe) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe. The recipe's `deepspeed.config` is laid over it, key by key."""
    stage, precision = recipe.deepspeed.zero_stage, recipe.compute.precision
    zero: dict[str, Any] = {"stage": stage}
    if stage != 2:
        zero["overlap_comm"] = False  # with unmanaged accumulation DeepSpeed can overlap at stage 2 only
    if stage == 3:
        zero["memory_efficient_linear"] = False  # replaces F.linear process-wide, with other rounding than stage 2
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # At stage 0 the engine clips, as it needs the norm before the step anyway.
        "gradient_clipping": recipe.optimizer.gradient_clipping if stage > 0 else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # Ranger acts element by element, as ZeRO needs it
    }
    if recipe.deepspeed.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        config["zero_force_ds_cpu_optimizer"] = False  # torch's own optimizers: the same numbers as without offloading
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
        config["communication_data_type"] = "fp32"
        if stage != 1:  # at stage 1 this would select another optimizer class with another state layout
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    elif precision == "bf16_autocast":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    for key in recipe.deepspeed.config:
        if key in OWNED_KEYS:
            raise PretrainError(f"deepspeed.config.{key} is decided by the recipe; use {OWNED_KEYS[key]} instead")
    own_zero = recipe.deepspeed.config.get("zero_optimization") or {}
    if not isinstance(own_zero, Mapping) or "stage" in own_zero:
        raise PretrainError(
            "deepspeed.config.zero_optimization.stage is decided by the recipe; use deepspeed.zero_stage instead"
        )
    for key, instead in (("offload_optimizer", "deepspeed.offload"), ("offload_param", "nothing: it is not supported")):
        if key in own_zero:
            raise PretrainError(f"deepspeed.config.zero_optimization.{key} is decided by the recipe; use {instead}")
    return _overlaid(config, recipe.deepspeed.config)


def check_deepspeed_config(recipe: Recipe) -> None:
    """Raises PretrainError with DeepSpeed's reason if it does not take the recipe's `deepspeed.config`."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError

    config = deepspeed_config(recipe)
    try:
        DeepSpeedConfig(config)
    except (DeepSpeedConfigError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise PretrainError(f"DeepSpeed does not take deepspeed.config: {' '.join(str(error).split())}") from error


def _overlaid(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _overlaid(merged[key], value) if both else value
    return merged


def _finite(number: float) -> bool:
    return number - number == 0.0
