"""The run page's words: state, key figures, history and configuration, as HTML."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from html import escape
from typing import Any

from neuropbr_dist.config import TrainConfig
from neuropbr_dist.config.values import to_dict
from neuropbr_dist.report.curves import MEAN_MAPS
from neuropbr_dist.report.folder import RunFolder


def state(run: RunFolder) -> tuple[str, str]:
    """Return how the run stands: a kind (`finished`, `stopped`, `failed`, `open`) and a sentence."""
    at = f"step {run.step:,}"
    if not run.history:
        return "open", f"No record of its end; last step {run.step:,}"
    last = run.history[-1]
    if last["event"] == "start":
        return "open", f"Running, or ended without a word; last written {run.written:%Y-%m-%d %H:%M} UTC"
    how = last["how"]
    if how == "finished":
        return "finished", f"Finished at {at}"
    if how.startswith("error"):
        return "failed", f"Failed at {at}: {how.removeprefix('error: ')}"
    return "stopped", f"Stopped at {at} ({how}); --resume auto goes on"


def summary(run: RunFolder) -> str:
    """Return what runs, on one line."""
    if not run.starts:
        return f"{run.config.training.epochs} epochs"
    last = run.starts[-1]
    parameters = ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in last["parameters"].items())
    return (
        f"{parameters} parameters · {last['train_samples']:,} samples to train on, {last['val_samples']:,} held out, "
        f"{last['image_size']} px · global batch {last['global_batch']} · {hardware(last)}"
    )


def hardware(start: dict[str, Any]) -> str:
    """Return the hardware as `8 × NVIDIA H100 80GB HBM3 on 1 node`."""
    devices = ", ".join(f"{count} × {name}" for name, count in start["devices"].items())
    return f"{devices} on {start['nodes']} node{'s' if start['nodes'] > 1 else ''}"


# -- key figures ---------------------------------------------------------------------------


def tiles(run: RunFolder) -> str:
    """Return the numbers to look at first; those of validation with what they were before training, and are
    of mean maps."""
    epochs = max((line["epoch"] for line in run.metrics), default=0)
    found = [tile("Progress", f"{run.step:,}", "steps", f"epoch {epochs} of {run.config.training.epochs}")]
    for metric, label, form, unit in (
        ("mae", "Mean error of the maps", "{:.4f}", ""),
        ("psnr", "PSNR", "{:.1f}", "dB"),
        ("ssim", "SSIM", "{:.3f}", ""),
        ("normal_angle_mean", "Normals off by", "{:.1f}°", ""),
        ("relit_rmse", "Re-rendered, off by", "{:.3f}", ""),
    ):
        values, guessed = (
            [value for _, value in run.column(f"{prefix}{metric}") if value is not None]
            for prefix in ("val/", MEAN_MAPS)
        )
        if values:
            beside = [f"{form.format(values[0])} {unit}".rstrip() + " at first"]
            beside += [f"{form.format(guess)} of mean maps" for guess in guessed[-1:]]
            found.append(tile(label, form.format(values[-1]), unit, ", ".join(beside)))
    speed = [value for _, value in run.column("speed/samples_per_s") if value is not None]
    if speed:
        found.append(tile("Throughput", f"{speed[-1]:.3g}", "samples/s", time_spent(run)))
    return "\n".join(found)


def tile(label: str, value: str, unit: str, note: str) -> str:
    """Return one tile: a figure with its unit, what it is above it and a remark below."""
    said = f'{escape(value)}<span class="unit">{escape(unit)}</span>'
    return f'<div class="tile"><dt>{escape(label)}</dt><dd>{said}<small>{escape(note)}</small></dd></div>'


def time_spent(run: RunFolder) -> str:
    """Return wall time from each start to its end; of one without an end, to the last line written."""
    seconds = 0.0
    for start, end in starts_and_ends(run):
        ended = datetime.fromisoformat(end["time"]) if end else None
        if ended is None and start is run.starts[-1]:
            ended = run.written
        if ended is not None:
            seconds += max(0.0, (ended - datetime.fromisoformat(start["time"])).total_seconds())
    return f"{duration(seconds)} in all" if seconds >= 1 else "under a second in all"


def duration(seconds: float) -> str:
    """Return a duration as `3 d 4 h`, `2 h 5 min`, `4 min 10 s` or `12 s`."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    words: list[str] = []
    left = round(seconds)
    for name, size in units:
        count, left = divmod(left, size)
        if count or (name == "s" and not words):
            words.append(f"{count} {name}")
    return " ".join(words[:2])


# -- history -------------------------------------------------------------------------------


def starts_and_ends(run: RunFolder) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Return each start with the end that followed it, if one did."""
    found: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
    for line in run.history:
        if line["event"] == "start":
            found.append((line, None))
        elif found:
            found[-1] = (found[-1][0], line)
    return found


def history_table(run: RunFolder) -> str:
    """Return a table with a row a start: when, on what, from which step, and how it ended."""
    if not run.starts:
        return "<p class='quiet'>This run was started before starts were recorded.</p>"
    rows = []
    for start, end in starts_and_ends(run):
        engine = start["engine"]
        if start["engine_discriminator"] not in (None, engine):
            engine += f" (discriminator: {start['engine_discriminator']})"
        cells = {
            "Started": moment(start["time"]),
            "From step": f"{start['step']:,}",
            "Ran on": f"{ranks(start['world_size'])}: {hardware(start)}; {launcher(start)}",
            "Engine": f"{engine}, {start['precision']}, {start['activation_checkpointing']}, "
            f"torch.compile {start['compile']}",
            "Batch": f"{start['global_batch']} = up to {start['micro_batches_per_step']} × {start['micro_batch']} "
            "a rank",
            "Samples": f"{start['train_samples']:,} and {start['val_samples']:,} held out, {start['image_size']} px"
            + (f"; {start['source']}" if start.get("source") else ""),
            "Versions": ", ".join(f"{name} {number}" for name, number in start["versions"].items()),
            "Ended": f"{end['how']}, step {end['step']:,}" if end else ending(run, start),
        }
        row = "".join(f'<td data-label="{name}">{escape(text)}</td>' for name, text in cells.items())
        rows.append(f"<tr>{row}</tr>")
    head = "".join(f"<th>{name}</th>" for name in cells)
    return f"<table class='wide'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def launcher(start: dict[str, Any]) -> str:
    """Return who started the processes."""
    return "no launcher" if start["launcher"] == "none" else f"{start['launcher']} launcher"


def ranks(count: int) -> str:
    """Return the number of ranks as `1 rank`, `2 ranks`."""
    return f"{count} rank{'s' if count != 1 else ''}"


def ending(run: RunFolder, start: dict[str, Any]) -> str:
    """Return what to say of a start that no end was written for."""
    return "not yet, or without a word" if start is run.starts[-1] else "without a word (killed?)"


def moment(text: str) -> str:
    """Return an ISO 8601 time as people write it, in UTC."""
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"


# -- configuration -------------------------------------------------------------------------


def config_tables(config: TrainConfig) -> str:
    """Return every field by part; those that aren't the default stand out."""
    defaults = to_dict(TrainConfig())
    return "\n".join(
        config_table(part, fields.items(), defaults[part]) for part, fields in to_dict(config).items()
    )


def config_table(part: str, fields: Iterable[tuple[str, Any]], defaults: dict[str, Any]) -> str:
    """Return the fields and values of one part; those that differ from the default are marked and say it."""
    rows = []
    for field, value in fields:
        changed = value != defaults[field]
        note = f' title="default: {escape(shown(defaults[field]))}"' if changed else ""
        mark = ' class="changed"' if changed else ""
        rows.append(f"<tr{mark}{note}><th>{escape(field)}</th><td>{escape(shown(value))}</td></tr>")
    return f"<section><h3>{escape(part)}</h3><table>{''.join(rows)}</table></section>"


def shown(value: Any) -> str:
    """Return a value as YAML would say it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
