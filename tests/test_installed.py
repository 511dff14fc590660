"""The package as it is installed: complete, without what measures, and at home in any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.distributed import ENVIRONMENT, ROOT
from tests.support.train_runs import tiny_words

pytestmark = pytest.mark.drill
SOURCES = ("neuropbr_dist", "ds_configs", "setup.py", "pyproject.toml", "README.md", "benchmarks", "launch")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that pip has put the package in, from a source distribution's wheel."""
    root = tmp_path_factory.mktemp("installed")
    (root / "source").mkdir()
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, root / "source" / name)
    quiet = {"capture_output": True, "text": True, "cwd": root / "source", "check": True}
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", root], **quiet)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", root / "target", next(root.glob("*.tar.gz"))], **quiet)
    return root / "target"


def call(installed: Path, folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | ENVIRONMENT | {"PYTHONPATH": str(installed)}
    return subprocess.run(list(map(str, words)), cwd=folder, env=env, capture_output=True, text=True)


def test_nothing_that_measures_is_in_it(installed):
    assert {path.name for path in installed.iterdir() if path.name[0].isalpha()} == {
        "bin", "neuropbr_dist", next(installed.glob("*.dist-info")).name,
    }  # fmt: skip
    assert sorted(path.name for path in (installed / "bin").iterdir()) == [
        "neuropbr", *(f"neuropbr-{name}" for name in ("data", "export", "infer", "report", "submit", "train")),
    ]  # fmt: skip


@pytest.mark.multiprocess
def test_it_trains_under_a_launcher_by_a_name_and_resumes_from_another_folder(installed, tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["--checkpoint-dir", run, *tiny_words(), "--stop-after-steps"]
    ended = call(installed, tmp_path, *torchrun, "-m", "neuropbr_dist", "train", "--ds", "zero2", *words, "1")
    assert ended.returncode == 0 and "Engine: deepspeed on 2 x cpu" in ended.stdout, ended.stderr
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["ds_config"] == "zero2"
    neuropbr = [sys.executable, installed / "bin" / "neuropbr"]
    go_on = [
        "--resume",
        "auto",
        "--checkpoint-dir",
        run,
        "--ds-discriminator",
        "zero1",
        "--stop-after-steps",
        "2",
    ]
    ended = call(installed, elsewhere, *neuropbr, "train", *go_on)
    assert ended.returncode == 0 and "after step 2" in ended.stdout, ended.stderr
    ended = call(installed, elsewhere, *neuropbr, "train", "--ds", "zero9")
    assert ended.returncode == 2 and "there are zero1, zero2, zero2_offload" in ended.stderr
