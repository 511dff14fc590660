"""First steps of every engine on a network's segments: activation checkpointing, then compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from neuropbr_dist.errors import UserError
from neuropbr_dist.parallel.activation import checkpoint_segment, keeps_attention
from neuropbr_dist.processes import stop_signals_held

# Segments share one code object, and each has graphs for training, frozen and no-grad
# passes: with torch's limit of 8 most segments would run uncompiled, but for a warning.
GRAPHS_A_CODE_OBJECT = 256


def kind_of(segment: str, recompute: str | Mapping[str, str]) -> str:
    """Return what is recomputed in `segment`, as the last pattern that matches its name says; `none` without one."""
    if isinstance(recompute, str):
        return recompute
    return next(
        (kind for pattern, kind in reversed(list(recompute.items())) if fnmatch(segment, pattern)), "none"
    )


def prepare_segments(
    segments: dict[str, nn.Module], *, recompute: str | Mapping[str, str], compile_blocks: bool
) -> None:
    """Apply activation checkpointing, then compile, in place; sharding comes after.

    Args:
        segments: from the model, in forward order.
        recompute: `none`, `selective` (attention outputs are kept), `full` or `split` (full, a
            sample at a time) for all segments, or patterns of segment names to these.
        compile_blocks: torch.compile each segment. Static shapes: dynamic ones
            fail on this model ("cannot determine truth value of Relational").
    """
    if compile_blocks:
        torch._dynamo.config.recompile_limit = GRAPHS_A_CODE_OBJECT
        torch._dynamo.config.accumulated_recompile_limit = 4 * GRAPHS_A_CODE_OBJECT
    for name, module in segments.items():
        kind = kind_of(name, recompute)
        # The compiler must see attention inside the recomputed region to keep its output;
        # elsewhere compiled code goes inside, so that graphs are small and shared, and batch
        # statistics, noted in Python lists, stay outside of a compiled region.
        around = keeps_attention(module, kind)
        if compile_blocks and not around:
            for unit in getattr(module, "compile_units", lambda m=module: [m])():
                compile_forward(unit)
        if kind != "none":
            checkpoint_segment(module, kind)
        if compile_blocks and around:
            compile_forward(module)


def plain_segments(segments: dict[str, nn.Module]) -> None:
    """Undo `prepare_segments`: each computes as its class has it, and what was compiled for it is forgotten."""
    for module in segments.values():
        for unit in (module, *getattr(module, "compile_units", tuple)()):
            vars(unit).pop("forward", None)


def compile_forward(module: nn.Module) -> None:
    """Compile the forward only: `module.compile()` would take in the engine's hooks, and FSDP2's
    hooks then leave most segments uncompiled (measured: 3 graphs of 9).

    A module that says `runs_kernels` for its inputs has kernels for all that a compiler would
    fuse, and is left to them: they are faster, and there is no first step to wait for.
    """
    plain, fused = module.forward, compiled(module.forward)
    runs_kernels: Any = getattr(module, "runs_kernels", lambda *_: False)

    def forward(*args: Any) -> Any:
        return (plain if runs_kernels(*args) else fused)(*args)

    module.forward = forward  # type: ignore[method-assign]


def compiled(function: Callable) -> Callable:
    """Return `function` under `torch.compile` as everywhere here: shapes are static."""
    # Without the option the compiler goes by channel counts, and turns tensors over between
    # layouts around many convolutions (measured: 36 ms of a step).
    return torch.compile(function, dynamic=False, options={"force_layout_optimization": True})


def uncompiled(as_written: bool) -> AbstractContextManager[object]:
    """Return a context in which what is `compiled` runs as it is written, and nothing is compiled; False: it has no effect.

    Its first use imports the compiler, which takes seconds.
    """
    return torch.compiler.set_stance("force_eager") if as_written else nullcontext()


@contextmanager
def compiler_processes() -> Iterator[None]:
    """Let the compiler's processes outlive the stop signals that come inside; this process decides when they end.

    A batch system, `timeout` and a terminal send such a signal to all processes of a group. Without those that compile for
    it, torch 2.11 waits for ever, and torch 2.14 raises an error, where the run is to save its state.
    """
    with stop_signals_held():  # the import, which takes seconds, may start them already
        from torch._inductor.async_compile import AsyncCompile, get_compile_threads

        AsyncCompile.warm_pool()
    if get_compile_threads() <= 1:
        yield
        return
    try:
        yield
    finally:
        # Idle ones end at this word. At the interpreter's exit they would be sent SIGTERM, and waited for 10 s.
        pool: Any = AsyncCompile.process_pool()
        if getattr(pool, "running", False):
            pool.quiesce()


@contextmanager
def compiler_files() -> Iterator[None]:
    """Tell in one line, of what runs inside, that the compiler can't write its files: torch tells it in a traceback.

    Raises:
        UserError: a full disk, say, under `TORCHINDUCTOR_CACHE_DIR` or `TMPDIR`.
    """
    try:
        yield
    except RuntimeError as error:
        refused = getattr(error, "inner_exception", None)  # of torch._dynamo, which takes seconds to import
        if not isinstance(refused, OSError):
            raise
        where = f" {refused.filename}" if refused.filename else ""
        raise UserError(
            f"torch.compile can't write its files{where}: {refused.strerror}; make room, name another folder by "
            "TORCHINDUCTOR_CACHE_DIR and TMPDIR, or --set training.compile=off"
        ) from error
