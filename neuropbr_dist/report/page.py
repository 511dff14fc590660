"""The run page: text and tables from here, charts and pictures drawn by the page's own script."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from neuropbr_dist.files import realpath, write_text, writing
from neuropbr_dist.materials.bench import bench
from neuropbr_dist.materials.channels import decode
from neuropbr_dist.monitor.figure import ANGLE_LIMIT, ERROR_LIMIT
from neuropbr_dist.monitor.heat import heat
from neuropbr_dist.report.curves import charts, marks
from neuropbr_dist.report.folder import RunFolder, read_run
from neuropbr_dist.report.samples import samples
from neuropbr_dist.report.text import config_tables, history_table, state, summary, tiles

PAGE = "report.html"
SCRIPTS = ("chart.js", "shade.js", "bench.js", "page.js")


def write_page(folder: Path) -> Path:
    """Write `report.html` into a run's folder; replaces an older one by one rename.

    Raises:
        UserError: no run's folder, a damaged file in it, or it can't be written to.
    """
    page = render(read_run(folder))
    path = folder / PAGE
    with writing(path):
        write_text(path, page)
    return path


def render(run: RunFolder) -> str:
    """Return the page's HTML: style, scripts, numbers and pictures inside, and leave to load nothing else."""
    name = realpath(run.path).name
    kind, said = state(run)
    parts = {
        "title": escape(name),
        "name": escape(name),
        "style": asset("style.css"),
        "state_kind": kind,
        "state": escape(said),
        "summary": escape(summary(run)),
        "tiles": tiles(run),
        "history": history_table(run),
        "config": config_tables(run.config),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "data": script_safe(page_data(run)),
        "script": "\n".join(asset(script) for script in SCRIPTS),
    }
    # In one pass: a value that looks like a placeholder stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], asset("page.html"))


def page_data(run: RunFolder) -> dict[str, Any]:
    """Return what the page's script draws."""
    epochs = sorted({(line["step"], line["epoch"]) for line in run.metrics})
    return {
        "charts": charts(run),
        "marks": marks(run),
        "epochs": epochs if len(epochs) <= 2000 else epochs[:: len(epochs) // 2000],
        "step": run.step,
        "worlds": [[start["step"], start["world_size"]] for start in run.starts],
        "samples": samples(run),
        "heat": heat(decode(np.arange(256.0))).ravel().tolist(),
        "limits": {"error": ERROR_LIMIT, "angle": ANGLE_LIMIT},
        "bench": bench(),
    }


def asset(name: str) -> str:
    """Return the text of a file of the page's own scripts and styles."""
    return files("neuropbr_dist.report").joinpath("assets", name).read_text(encoding="utf-8")


def script_safe(data: Any) -> str:
    """Return JSON that can stand inside a script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
