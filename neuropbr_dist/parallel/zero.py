"""DeepSpeed ZeRO 0-3, optionally with CPU offload: one engine a network.

Reads private attributes of DeepSpeed 0.19.8 to reach the float32 masters where
they lie; the version is pinned and the tests cover every stage.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from neuropbr_dist.fragment import Fragment
from neuropbr_dist.parallel.network import Adam, Network, StepResult
from neuropbr_dist.parallel.optimizer import sum_of_squares

MOMENTS = ("exp_avg", "exp_avg_sq")


def import_deepspeed() -> Any:
    """Import DeepSpeed, quiet, and without its just-in-time shared-memory op (45 s to build on CPU)."""
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    import_muon()
    return deepspeed


def import_muon() -> None:
    """Import Muon, which DeepSpeed imports to ask whether AdamW is it, without compiling it: that alone
    would load all of torch.compile (2 s and more in each rank), for a run without it as well."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        del os.environ["TORCHDYNAMO_DISABLE"]
        if before is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = before


class ZeRONetwork(Network):
    """`--engine deepspeed`.

    Args:
        module: with its segments prepared (activation checkpointing, compile).
        config: complete DeepSpeed configuration of this network
            (`config.deepspeed.resolve`).
    """

    def __init__(self, module: Any, device: torch.device, config: dict[str, Any], adam: Adam) -> None:
        deepspeed = import_deepspeed()
        self.module, self.device = module, device
        self.stage: int = config["zero_optimization"]["stage"]
        self.replicated = self.stage == 0
        self.world = dist.get_world_size()
        # DeepSpeed keeps no float32 master of a frozen parameter; it never moves, so this is one.
        self._frozen_masters = {
            name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad
        }
        started_from = {name: p.detach().clone() for name, p in module.named_parameters()}
        if self.stage == 3:
            for segment in module.segments().values():
                segment._z3_leaf = True  # gathered and released as a whole
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, **vars(adam), fused=True)
        self.engine, *_ = deepspeed.initialize(
            model=module, model_parameters=trained, optimizer=optimizer, config=config
        )
        self.adamw: torch.optim.AdamW = self.engine.basic_optimizer
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        self.dtype = next((dtypes[k] for k in dtypes if config.get(k, {}).get("enabled")), None)
        self.clip: float = config.get("gradient_clipping", 0.0)
        if self.stage == 3:
            self._reduce_one_by_one()
        self._make_moments()
        self._restore_masters(started_from)

    def _reduce_one_by_one(self) -> None:
        """Reduce each parameter's gradient when it is there, as it is outside of DeepSpeed's leaf modules.

        Its hook for a whole leaf fires in a frozen one's backward too, with zeros for every gradient;
        and before any gradient is there where the leaf's input needs none.
        """
        zero: Any = self.engine.optimizer
        for hooks in (zero._grad_acc_hooks, zero._leaf_module_hooks):
            while hooks:
                hooks.pop().remove()
        for p in self.module.parameters():
            vars(p).pop("ds_z3_leaf_module", None)
        zero.create_reduce_and_remove_grad_hooks()

    # -- the step --------------------------------------------------------------------------

    def __call__(self, x: Tensor) -> Any:
        x = x if self.dtype is None else x.to(self.dtype)
        # A frozen or no-grad pass through the engine would count as its own forward
        # ("Direct calls to tensor.backward()…" at stage 0): the inner module it is.
        if self._frozen or not torch.is_grad_enabled():
            return self.module(x)
        return self.engine(x)

    def sync_gradients(self, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * self.world, scale_wrt_gas=False)  # ZeRO averages over ranks

    def apply(self) -> StepResult:
        if self.stage == 0:
            return self._apply_stage_0()
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        overflow = bool(self.engine.optimizer.overflow)
        counts = overflow and not self._scale_can_fall()
        return StepResult(torch.as_tensor(norm, dtype=torch.float32), torch.tensor(not counts))

    def _scale_can_fall(self) -> bool:
        """Return whether an overflow lowers the scale (fp16); it is a fault only at the smallest one."""
        return self.dtype == torch.float16 and self.engine.optimizer.loss_scale > 1.0

    def _apply_stage_0(self) -> StepResult:
        grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = sum_of_squares(grads, self.device).float().sqrt()
        finite = torch.isfinite(norm)
        if finite:  # without ZeRO DeepSpeed has no check of its own
            self.engine.step()
        else:
            self.engine.zero_grad()
        return StepResult(norm, finite)

    def take_batches(self, ds_config: Mapping[str, Any]) -> None:
        """Set DeepSpeed's own counts alone: where a step ends and what a gradient is divided by, we tell it."""
        config: Any = self.engine._config
        for field in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
            setattr(config, field, ds_config[field])
        self.engine.tput_timer.batch_size = ds_config["train_batch_size"]
        # With moments on the host its gradient norm is of the accumulated gradients only where it knows there are any.
        if self.stage:
            self.engine.optimizer.gradient_accumulation_steps = ds_config["gradient_accumulation_steps"]

    def set_learning_rate(self, lr: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = lr

    # -- state -----------------------------------------------------------------------------

    def _masters(self) -> list[Tensor]:
        """Return the tensors that Adam's state is keyed by: flat float32 partitions, or parameters at stage 0."""
        return [p for group in self.adamw.param_groups for p in group["params"]]

    def _make_moments(self) -> None:
        """Make Adam's moments now: DeepSpeed and torch make them at the first step, and a save before it needs them."""
        if self.stage == 3:
            masters = self.engine.optimizer.fp32_partitioned_groups_flat
        elif self.stage:
            masters = self.engine.optimizer.single_partition_of_fp32_groups
        else:
            masters = self._masters()
        for flat in masters:
            if "exp_avg" not in self.adamw.state[flat]:
                self.adamw.state[flat] = {
                    "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                    **{key: torch.zeros_like(flat) for key in MOMENTS},
                }
        if self.stage in (1, 2):
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _restore_masters(self, values: dict[str, Tensor]) -> None:
        """Restore the float32 masters: DeepSpeed casts the module first and makes them from that, bf16's 8
        bits of the weights."""
        for piece in self.fragments():
            kind, _, name = piece.name.partition("/")
            if kind == "param":
                end = piece.start + piece.data.numel()
                piece.data.copy_(values[name].view(-1)[piece.start : end])

    def fragments(self) -> list[Fragment]:
        found = []
        for name, p in self.module.named_parameters():
            if name in self._frozen_masters:
                found.append(Fragment.whole(f"param/{name}", self._frozen_masters[name]))
            else:
                found.extend(self._trained_fragments(name, p))
        return found + self.buffer_fragments()

    def _trained_fragments(self, name: str, p: Any) -> Iterator[Fragment]:
        key: str | None
        if self.stage == 0:
            state = self.adamw.state[p]
            yield Fragment(f"param/{name}", p.detach().view(-1), 0, p.shape)
            for key in MOMENTS:
                yield Fragment(f"{key}/{name}", state[key].view(-1), 0, p.shape)
        elif self.stage == 3:
            for key in (None, *MOMENTS):
                yield self._stage_3_fragment(name, p, key)
        elif p._hp_mapping is not None:  # None: this rank holds nothing of it
            start = p._hp_mapping.lp_fragment_address.start
            for key in (None, *MOMENTS):
                data = p._hp_mapping.get_hp_fragment(key).detach()
                yield Fragment(f"{key or 'param'}/{name}", data, start, p.shape)

    def _stage_3_fragment(self, name: str, p: Any, key: str | None) -> Fragment:
        piece, _ = self.engine.optimizer._get_fp32_opt_state_partition(
            p, release_swap_buffers=False, optim_state_key=key
        )
        # The last partitions are padded, or wholly padding: ranks may outnumber elements.
        start = min(p.ds_tensor.ds_numel * dist.get_rank(), p.ds_numel)
        held = min(piece.numel(), p.ds_numel - start)
        return Fragment(f"{key or 'param'}/{name}", piece.detach().view(-1)[:held], start, p.ds_shape)

    def counters(self) -> dict[str, float]:
        found = {"step": max(float(s["step"]) for s in self.adamw.state.values())}
        if self.dtype == torch.float16:
            found["loss_scale"] = float(self.engine.optimizer.loss_scale)
        return found

    def loaded(self, counters: dict[str, float]) -> None:
        for state in self.adamw.state.values():
            state["step"].fill_(counters["step"])
        if self.dtype == torch.float16 and "loss_scale" in counters:
            self.engine.optimizer.loss_scaler.cur_scale = counters["loss_scale"]
        self.refresh()

    def refresh(self) -> None:
        if self.stage in (1, 2):
            self.engine.optimizer.update_lp_params()
        elif self.stage == 3:
            self._refresh_stage_3()
        self._restore_frozen()

    def _refresh_stage_3(self) -> None:
        zero = self.engine.optimizer
        # Also what a forward pass without a backward left gathered: it would be used as it is.
        zero._partition_all_parameters()
        for i in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(i)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def _restore_frozen(self) -> None:
        params: dict[str, Any] = dict(self.module.named_parameters())
        for name, master in self._frozen_masters.items():
            p = params[name]
            if self.stage != 3:
                p.data.copy_(master)
                continue
            size = p.ds_tensor.ds_numel
            piece = master.view(-1)[size * dist.get_rank() : size * (dist.get_rank() + 1)]
            p.ds_tensor.data.view(-1)[: piece.numel()].copy_(piece)
            if p.ds_persist:
                p.data.copy_(master)
