"""Every command of README.md and docs/*.md runs, or is marked and checked (see tests/support/doc_commands.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuropbr_dist.data.builtin.generate import generate
from tests.support import upstream_stand_in as upstream
from tests.support.distributed import ENVIRONMENT, ROOT
from tests.support.doc_commands import MARKS, Example, examples, faults, shortened
from tests.support.forked import call
from tests.support.material_files import write_set
from tests.support.train_runs import SETTINGS, command

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [example for page in PAGES for example in examples(page)]
CARRIED = (
    "neuropbr_dist",
    "benchmarks",
    "launch",
    "ds_configs",
    "slurm",
    "docs",
    "Makefile",
    "setup.py",
    "README.md",
)
LIMIT_S = 240
SIZE = 64

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of the project, with the data, the run and the files that the pages' Python examples name."""
    root = tmp_path_factory.mktemp("project")
    for name in CARRIED:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        (shutil.copytree if source.is_dir() else shutil.copy)(
            source, root / name, **({"ignore": ignored} if source.is_dir() else {})
        )
    renders, maps = write_set(
        root / "data", {f"sample_{i:04d}": f"material_{i}" for i in range(16)}, size=SIZE
    )
    for name, path in {"IN": renders, "OUT": maps, "my_renders": renders / "clean" / "sample_0000"}.items():
        (root / name).symlink_to(path)
    train_a_run(root, renders, maps)
    for example in EXAMPLES:
        if example.python and (name := file_name(example)):
            (root / name).write_text(example.text)
    return root


@pytest.fixture(scope="module")
def everything(folder) -> Path:
    """The same, with what the pages' commands name besides: upstream's checkpoint, other people's materials."""
    torch.save(upstream.content(), folder / "best_model.pth")
    others = folder / "others"
    generate(others, count=3, size=SIZE, seed=2, workers=1, curriculum_dirty=False, progress=False)
    (folder / "SRC").symlink_to(others / "output")
    return folder


def train_a_run(root: Path, renders: Path, maps: Path) -> None:
    """`./checkpoints`: two epochs of three in batches of four, for up to four ranks."""
    chosen = SETTINGS | {
        "training.epochs": 3, "training.global_batch_size": 4, "training.gan_start_epoch": 0,
        "training.use_tensorboard": True,
    }  # fmt: skip
    sets = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
    folders = ["--input-dir", renders, "--output-dir", maps, "--checkpoint-dir", root / "checkpoints"]
    ended = command(*folders, "--device", "cpu", *sets, "--stop-after-epochs", "2")
    assert ended.code == 0, ended.err


def file_name(example: Example) -> str | None:
    first = example.text.splitlines()[0]
    return first.removeprefix("# ") if first.startswith("# ") and first.endswith(".py") else None


def bash(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder, env=os.environ | ENVIRONMENT | own, capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_marks_are_known(example):
    assert example.mark in MARKS


@pytest.mark.parametrize("example", [e for e in EXAMPLES if not e.python], ids=str)
def test_words_and_files_of_a_command_exist(example):
    assert faults(example.text, ROOT) == []


@pytest.mark.drill
@pytest.mark.parametrize("example", [e for e in EXAMPLES if not e.python], ids=str)
def test_command(example, everything):
    text = shortened(example.text) if example.mark == "long" else example.text
    if text is None or example.mark in ("gpu", "slurm", "install"):
        return
    shutil.rmtree(everything / "shortened", ignore_errors=True)
    ended = bash(text, everything)
    assert ended.returncode == 0, f"{text}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.python], ids=str)
def test_python_block(example, folder):
    name = f"{example.place.replace(':', '_')}.py"
    compile(example.text, name, "exec")
    if example.mark is None and file_name(example) is None:
        ended = call(example.text, cwd=folder)
        assert ended.code == 0, ended.err


# -- the mechanism itself --------------------------------------------------------------------

PAGE = """
Run `python launch/train.py --debug` or `make demo`.
`data.image_size` and `python` are no commands.

```bash slurm
sbatch --nodes=2 \\
    slurm/train.sbatch   # two nodes
A=1 python launch/infer.py --checkpoint x
```

```bash
# a comment
make check
```
```
not run
```
"""


def test_commands_are_found_with_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert [(e.text, e.mark) for e in examples(page)] == [
        ("python launch/train.py --debug", "long"),
        ("make demo", "long"),
        ("sbatch --nodes=2 slurm/train.sbatch   # two nodes", "slurm"),
        ("A=1 python launch/infer.py --checkpoint x", "slurm"),
        ("make check", None),
    ]


LOOP = """
```bash gpu
run=checkpoints/long
while :; do   # for ever
    python launch/train.py --checkpoint-dir "$run" "$@" || code=$?
    sbatch slurm/train.sbatch --set training.epochs=$((N + 1)) --epochs "${EPOCHS:-1}"
done
```
"""


def test_a_loop_is_one_command_and_its_lines_are_checked(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(LOOP)
    (example,) = examples(page)
    assert example.mark == "gpu" and example.text.startswith("run=checkpoints/long\nwhile")
    assert faults(example.text, ROOT) == ["train: its parser refuses --set training.epochs=0 --epochs X"]
    corrected = example.text.replace('"${EPOCHS:-1}"', "3").replace("epochs=$((N + 1))", "epochs=2")
    assert faults(corrected, ROOT) == []
    assert faults(corrected.replace("--check", "--no-check"), ROOT) == [
        "train: its parser refuses --no-checkpoint-dir X"
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("make no-such", "make no-such: no such target"),
        ("python launch/none.py", "launch/none.py: no such file"),
        ("sbatch slurm/none.sbatch --config demo", "slurm/none.sbatch: no such file"),
        ("torchrun launch/train.py --no-such 1", "train: its parser refuses --no-such 1"),
        ("A=1 sbatch --nodes=2 slurm/train.sbatch --epochs x", "train: its parser refuses --epochs x"),
        ("neuropbr no-such", "no-such: its parser refuses "),
        ("deepspeed --module neuropbr_dist train --epochs x", "train: its parser refuses --epochs x"),
        ("python launch/benchmark.py step --no-such", "benchmark: its parser refuses step --no-such"),
        ("python launch/export.py inference only-one", "export: its parser refuses inference only-one"),
        (
            "python launch/submit.py --nodes 2 --nonsense 3",
            "submit: its parser refuses --nodes 2 --nonsense 3",
        ),
    ],
)
def test_what_a_reader_would_stumble_over_is_found(text, fault):
    assert faults(text, ROOT) == [fault]


def test_a_failing_command_fails(folder):
    assert bash("python -c 'raise SystemExit(2)'", folder).returncode == 2
    assert bash("false | true", folder).returncode == 1
