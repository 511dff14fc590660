"""Checkpoints into single files, and a check of any of them."""

from __future__ import annotations

import logging
from pathlib import Path

from neuropbr_dist.checkpoint import find, verify
from neuropbr_dist.checkpoint.tensor_file import SUFFIX, TensorFile, read_tensor_file, write_tensor_file
from neuropbr_dist.checkpoint.weights import WEIGHTS_FILE, open_checkpoint, read_weights
from neuropbr_dist.errors import UserError
from neuropbr_dist.files import write_text
from neuropbr_dist.inference.generator import build

log = logging.getLogger(__name__)


def export_inference(checkpoint: Path | str, out: Path | str) -> Path:
    """Write the generator alone, for `load_generator` or any safetensors reader.

    Args:
        checkpoint: whatever `load_generator` takes.
        out: a file ending in `.safetensors`, or a folder, which gets `model.safetensors` and,
            to be read by a person, `config.yaml` (the file holds the same text).

    Returns:
        The weights' file.

    Raises:
        UserError: see `load_generator`; or `out` can't be written, or is a run's folder.
    """
    out = Path(out)
    if out.suffix != SUFFIX and find(out):
        raise UserError(f"{out}: holds a run; name another folder, or a file ending in {SUFFIX}")
    weights, origin = read_weights(Path(checkpoint))
    build(weights, origin)  # what is written must load
    path = out if out.suffix == SUFFIX else out / WEIGHTS_FILE
    write_tensor_file(path, weights)
    if path != out:
        write_text(out / "config.yaml", weights.config_yaml)
    return path


def consolidate(checkpoint: Path | str, out: Path | str) -> Path:
    """Write a sharded checkpoint as one file: all tensors by canonical name, state and configuration.

    The whole checkpoint passes through this machine's memory. `read_tensor_file` reads it back.

    Raises:
        UserError: no good checkpoint there; `out` doesn't end in `.safetensors` or can't be written.
    """
    out = Path(out)
    if out.suffix != SUFFIX:
        raise UserError(f"{out}: a consolidated checkpoint is one file; its name must end in {SUFFIX}")
    with open_checkpoint(Path(checkpoint)) as opened:
        content = TensorFile("consolidated", opened.read(), opened.config_yaml, opened.state)
    write_tensor_file(out, content)
    return out


def check(path: Path | str) -> bool:
    """Read every byte of a checkpoint, of all checkpoints of a run, or of an exported file; log each fault.

    Returns:
        Whether all is sound.

    Raises:
        UserError: there is nothing to check, or it is of another format version.
    """
    path = Path(path)
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    faults = {found: verify(found, alone=True) for found in find(path)}
    if weights.is_file():
        faults[weights] = _file_faults(weights)
    if not faults:
        raise UserError(f"{path}: no checkpoint and no exported file there")
    for found, wrong in faults.items():
        for fault in wrong:
            log.info(f"{found}: {fault}")
        log.info(f"{found}: {f'damaged ({len(wrong)} faults)' if wrong else 'sound'}")
    return not any(faults.values())


def _file_faults(path: Path) -> list[str]:
    try:
        read_tensor_file(path)
    except UserError as error:
        return [str(error).removeprefix(f"{path}: ")]
    return []
