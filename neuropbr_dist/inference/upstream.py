"""Checkpoints of NeuroPBR's own trainer, into ours and back.

What its numbers mean: upstream normalises *targets* like the views (to [-1, 1] at mean and std 0.5), but
its outputs pass a sigmoid. So its albedo, roughness and metallic estimate max(0, 2v - 1) of the true
value v, and its inference saves that as it is. A converted generator gives the same numbers; nothing can
restore what lies below 0.5. Trained on here, it learns v itself. Its discriminator has seen true maps
in [-1, 1] and has that to unlearn. Normals mean the same in both.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from neuropbr_dist.checkpoint import Fragment, find, save, step_name
from neuropbr_dist.checkpoint.tensor_file import SUFFIX, TensorFile, write_tensor_file
from neuropbr_dist.checkpoint.weights import mismatches, read_networks, read_weights
from neuropbr_dist.config import ModelConfig, TrainConfig, as_saved, from_yaml, settled, to_yaml
from neuropbr_dist.errors import UserError, some
from neuropbr_dist.files import write_bytes, writing
from neuropbr_dist.inference import upstream_names as names
from neuropbr_dist.inference.upstream_config import config_of
from neuropbr_dist.inference.upstream_file import OUR_CONFIG, UpstreamFile, read_pth
from neuropbr_dist.models import Discriminator, Generator, encoder_norm
from neuropbr_dist.monitor.run_logs import METRICS
from neuropbr_dist.training.state import Progress

log = logging.getLogger(__name__)

State = dict[str, Tensor]


def from_upstream(
    source: Path | str,
    out: Path | str,
    *,
    trust_pickle: bool = False,
    discriminator: bool = True,
    assignments: Sequence[str] = (),
) -> Path:
    """Convert a `.pth` of upstream's trainer.

    Args:
        source: upstream's checkpoint.
        out: ends in `.safetensors`: the generator alone, for inference. Otherwise a run's folder, which gets
            a checkpoint at step 0 with empty moments, to infer from or train on with `--resume`.
        trust_pickle: run what the file asks to be run (see `read_pth`).
        discriminator: convert it too, if there is one.
        assignments: `part.field=value` over the configuration that the file means.

    Returns:
        The file, or the run's folder.

    Raises:
        UserError: see `read_pth` and `config_of`; or the tensors aren't those of that configuration.
    """
    source, out = Path(source), Path(out)
    file = read_pth(source, trust_pickle=trust_pickle)
    if not discriminator:
        file = UpstreamFile(file.generator, None, file.settings, file.config_yaml, file.epoch)
    cfg = config_of(file, str(source), assignments)
    if file.config_yaml is None and not file.settings and cfg.model.use_transformer:
        log.info(
            f"{source} has no configuration: {cfg.model.transformer_num_heads} attention heads are taken as given "
            "(--set model.transformer_num_heads=N)"
        )
    modules, states = converted(cfg, file, str(source))
    if out.suffix == SUFFIX:
        state = {"step": 0, "ema": False}
        write_tensor_file(out, TensorFile("inference", states["generator"], to_yaml(cfg), state))
        return out
    return write_run(out, cfg, modules, states)


def converted(
    cfg: TrainConfig, file: UpstreamFile, origin: str
) -> tuple[dict[str, nn.Module], dict[str, State]]:
    """Return the networks (without memory) and their `state_dict()`s."""
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {"generator": Generator(cfg.model)}
        if cfg.model.use_gan and file.discriminator is not None:
            modules["discriminator"] = Discriminator(cfg.model)
    wanted = {part: module.state_dict() for part, module in modules.items()}
    states = {"generator": names.generator_from(file.generator, wanted["generator"])}
    check_match(wanted["generator"], states["generator"], len(file.generator), origin)
    if "discriminator" in modules:
        assert file.discriminator is not None
        layers = cfg.model.discriminator_n_layers
        theirs = {name: names.discriminator_name(name, layers) for name in wanted["discriminator"]}
        states["discriminator"] = {
            name: file.discriminator[theirs[name]] for name in theirs if theirs[name] in file.discriminator
        }
        check_match(wanted["discriminator"], states["discriminator"], len(file.discriminator), origin)
    return modules, states


def check_match(wanted: Mapping[str, Tensor], found: State, given: int, origin: str) -> None:
    """Raise a UserError unless every tensor has its place on both sides, with the same shape."""
    faults = mismatches(wanted, found)
    taken = sum(4 if name in names.SPLIT else 1 for name in found)
    if given != taken:
        faults.append(f"{given - taken} tensors have no counterpart here")
    if faults:
        raise UserError(
            f"{origin}: not upstream's networks as its configuration means them: {some(faults, 5)}"
        )


def write_run(
    folder: Path, cfg: TrainConfig, modules: Mapping[str, nn.Module], states: Mapping[str, State]
) -> Path:
    """Write a run's folder with one checkpoint at step 0."""
    if find(folder) or (folder / METRICS).exists():
        raise UserError(f"{folder} holds a run; name another folder")
    cfg.training.checkpoint_dir = str(folder)
    progress = Progress(counters={part: {"step": 0.0} for part in modules})
    pieces = []
    for part, module in modules.items():
        buffers = dict(module.named_buffers())
        for name, value in states[part].items():
            kind = "buffer" if name in buffers else "param"
            pieces.append(Fragment.whole(f"{part}/{kind}/{name}", value.contiguous()))
        for name, p in module.named_parameters():
            for key in ("exp_avg", "exp_avg_sq") if p.requires_grad else ():
                pieces.append(Fragment.whole(f"{part}/{key}/{name}", torch.zeros(p.shape)))
    save(folder, step_name(0), pieces, asdict(progress), to_yaml(cfg))
    return folder


def to_upstream(checkpoint: Path | str, out: Path | str) -> Path:
    """Write a checkpoint that upstream's `load_state_dict` takes.

    It has no pickled configuration: upstream's scripts then build their default architecture, or the one
    that `--config` names. Generator weights are the run's moving average where it keeps one.

    Args:
        checkpoint: whatever `load_generator` takes; the discriminator comes along if it is there.
        out: a `.pth` file.

    Raises:
        UserError: the architecture isn't upstream's: a U-Net encoder, or a norm layer without running statistics.
    """
    out = Path(out)
    if out.suffix != ".pth":
        raise UserError(f"{out}: upstream's checkpoints end in .pth")
    weights, origin = read_weights(Path(checkpoint))
    cfg = as_saved(from_yaml(weights.config_yaml, f"{origin}: its configuration"))
    check_known_upstream(cfg, origin)
    content = {
        "epoch": 0,
        "global_step": weights.state["step"],
        "generator_state_dict": names.generator_to(weights.tensors),
        OUR_CONFIG: weights.config_yaml,
    }
    if discriminator := read_networks(origin, "discriminator")[0]["discriminator"].tensors:
        layers = cfg.model.discriminator_n_layers
        content["discriminator_state_dict"] = {
            names.discriminator_name(name, layers): value for name, value in discriminator.items()
        }
    write_whole(out, content)
    return out


def check_known_upstream(cfg: TrainConfig, origin: Path) -> None:
    """Raise one error that names every field that upstream has no class for: it knows ResNet and BatchNorm alone."""
    m, theirs = cfg.model, settled(ModelConfig(align="none"))
    same = (
        "encoder_type",
        "align",
        "skip_merge",
        "token_embedding",
        "normals",
        "discriminator_norm",
        "discriminator_input",
    )
    known = [(field, getattr(m, field), {getattr(theirs, field)}) for field in same]
    norms = {"batch", "sync_batch", "frozen_batch"}
    known += [("norm", m.norm, norms), ("encoder_norm", encoder_norm(m), norms)]
    faults = [
        f"model.{field} = {ours} (there: {' | '.join(sorted(allowed))})"
        for field, ours, allowed in known
        if ours not in allowed
    ]
    if faults:
        raise UserError(f"{origin}: upstream has no class for {', '.join(faults)}")


def write_whole(path: Path, content: Mapping[str, object]) -> None:
    """Write a `.pth` file by one rename."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, buffer := io.BytesIO())
        write_bytes(path, buffer.getbuffer())
