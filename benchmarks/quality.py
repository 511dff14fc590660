"""How good the maps get, and which defaults are sane: variants of one run, trained side by side.

    python benchmarks/quality.py --input-dir IN --output-dir OUT --minutes 7 --to results
    python benchmarks/quality.py --builtin 64 --minutes 7 --to results --variants no_gan gan

Every variant is a run of `launch/train.py` on a GPU of its own (`--gpus-each N`: on N, by torchrun), with
the same seed, the same materials held out and the same number of epochs: as many as the default, GAN on,
does in `--minutes`, found by a short run before. Epochs of warm-up and the GAN's start scale with it, from
the default preset's 5 of 100. A variant that needs longer is stopped, saves, and says so in the table.
`--to` gets `quality.md`, `quality.png` and `metrics.jsonl`, all runs' lines in one file. Other words go to every run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.quality_report import Result, picture, report
from neuropbr_dist.monitor.run_logs import HISTORY, run_log

ROOT = Path(__file__).resolve().parents[1]
NO_GAN = ["model.use_gan=false", "loss.w_gan=0"]
VARIANTS: dict[str, list[str]] = {
    "no_gan": NO_GAN,
    "gan": [],
    "gan_weak": ["loss.w_gan=0.01"],
    "gan_slow_d": ["optimizer.d_lr=2e-5"],
    "gan_weak_slow_d": ["loss.w_gan=0.01", "optimizer.d_lr=2e-5"],
    "gan_bce": ["loss.gan_loss_type=bce"],
    "gan_bce_smooth": ["loss.gan_loss_type=bce", "loss.gan_label_smoothing=0.1"],
    "gan_4_layers": ["model.discriminator_n_layers=4"],
    "gan_augmented": ["data.augment_flips=true", "data.augment_rotations=true"],
    "gan_ema": ["training.ema_decay=0.999"],
    "batch_norm": [*NO_GAN, "model.norm=batch", "model.encoder_norm=batch"],
    "frozen_encoder_norm": [*NO_GAN, "model.encoder_norm=frozen_batch"],
    "lr_half": [*NO_GAN, "optimizer.g_lr=1e-4"],
    "lr_double": [*NO_GAN, "optimizer.g_lr=4e-4"],
    "batch_4": [*NO_GAN, "training.batch_size=4", "training.global_batch_size=4"],
    "ema": [*NO_GAN, "training.ema_decay=0.999"],
}
FIRST = (
    "no_gan",
    "gan",
    "gan_weak",
    "gan_slow_d",
    "gan_weak_slow_d",
    "gan_bce_smooth",
    "batch_norm",
    "lr_half",
)
"""As many as a large host has GPUs."""

# The default preset, 512 wide instead of 2048: 54 M + 15 M parameters, so that minutes show something at 512 px.
BASE = (
    "model.encoder_pretrained=false", "model.transformer_dim=512", "model.transformer_num_heads=8",
    "data.render_curriculum=1", "data.val_ratio=0.25", "training.compile=off", "training.keep_latest=1",
    "training.save_best_only=true", "training.save_latest_every_n_epochs=1000000", "training.log_images_every_n_epochs=1000000",
)  # fmt: skip
VALIDATIONS = 12
STEPS_TO_TIME, LOG_EVERY = 60, 10
SHARE = 0.8
"""Of a variant's minutes that steps take; the rest is for the start, validations and saves."""
STARTED_AT = 0.05  # of the run: the default preset's warm-up and GAN start, 5 of 100 epochs
GRACE_S = 45


def main() -> None:
    """Time, train, write the tables and the picture."""
    p = parser()
    args, words = p.parse_known_args()
    if args.per_gpu > 1 and not args.epochs:
        p.error("--per-gpu needs --epochs: a variant's speed depends on its neighbours'")
    if args.builtin:
        words += ["--set", "data.builtin=true", "--set", f"data.builtin_count={args.builtin}"]
        words += ["--set", f"data.image_size={args.size}"]
    args.to.mkdir(parents=True, exist_ok=True)
    epochs = args.epochs or epochs_that_fit(args, words)
    print(f"{epochs} epochs a variant", flush=True)
    results = run_all(args, words, epochs)
    text = report(args, results)
    (args.to / "quality.md").write_text(text)
    picture(results, args.to / "quality.png")
    lines = [json.dumps({"variant": result.name, **line}) for result in results for line in result.lines()]
    (args.to / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    print(text)


def parser() -> argparse.ArgumentParser:
    """The words of this script; all others are those of `launch/train.py`."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    p.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the results go")
    p.add_argument("--runs", type=Path, default=ROOT / "runs" / "quality", metavar="DIR", help="run folders")
    p.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(FIRST), metavar="NAME",
                   help=f"of {', '.join(VARIANTS)}; default {' '.join(FIRST)}")  # fmt: skip
    p.add_argument("--minutes", type=float, default=7.0, metavar="N", help="a variant; default %(default)s")
    p.add_argument("--epochs", type=int, metavar="N", help="instead of those that fit into the minutes")
    p.add_argument("--gpus-each", type=int, default=1, metavar="N", help="default %(default)s")
    p.add_argument("--per-gpu", type=int, default=1, metavar="N",
                   help="variants that share a GPU (below 1,024 px the host is the limit); needs --epochs")  # fmt: skip
    p.add_argument("--builtin", type=int, default=0, metavar="N", help="train on N built-in materials")
    p.add_argument(
        "--size", type=int, default=512, metavar="S", help="of built-in materials; default %(default)s"
    )
    return p


# -- runs ----------------------------------------------------------------------------------


def command(folder: Path, words: list[str], sets: list[str], ranks: int) -> list[str]:
    """One run of `launch/train.py`. Words of the caller come last and win."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    engine = ["--engine", "ddp"] if ranks > 1 else []
    assignments = [word for assignment in (*BASE, *sets) for word in ("--set", assignment)]
    return [
        sys.executable, *(launcher if ranks > 1 else []), str(ROOT / "launch" / "train.py"),
        "--checkpoint-dir", str(folder), "--overwrite", *engine, *assignments, *words,
    ]  # fmt: skip


def start(folder: Path, words: list[str], sets: list[str], gpus: list[int], ranks: int) -> subprocess.Popen:
    """Begin a run on these GPUs; its output goes to `{folder}.log`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    with Path(f"{folder}.log").open("w") as log:
        return subprocess.Popen(
            command(folder, words, sets, ranks), env=env, stdout=log, stderr=subprocess.STDOUT
        )


def epochs_that_fit(args: argparse.Namespace, words: list[str]) -> int:
    """Time the default with the GAN on; it also makes the built-in materials, once for all."""
    folder = args.runs / "timing"
    sets = [f"training.log_every_n_steps={LOG_EVERY}", "training.gan_start_epoch=1"]
    gpus = list(range(args.gpus_each)) if torch.cuda.is_available() else []
    timing = start(
        folder, [*words, "--stop-after-steps", str(STEPS_TO_TIME)], sets, gpus, max(1, args.gpus_each)
    )
    if timing.wait():
        sys.exit(f"the run to be timed failed:\n{tail(folder)}")
    result = Result("timing", folder, sets, False)
    speeds = [line["speed/ms_per_step"] for line in result.lines() if "speed/ms_per_step" in line]
    ms = statistics.median(speeds[len(speeds) // 3 :])  # not the first steps
    facts = run_log(folder, HISTORY).read()[0]
    epoch_ms = ms * facts["train_samples"] / facts["global_batch"]
    print(f"{ms:.0f} ms a step, {epoch_ms / 1000:.1f} s an epoch of {facts['train_samples']} samples")
    return max(2, round(SHARE * args.minutes * 60_000 / epoch_ms))


def run_all(args: argparse.Namespace, words: list[str], epochs: int) -> list[Result]:
    """Every variant once, as many at a time as there are GPUs for."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    free = [list(range(i, i + args.gpus_each)) for i in range(0, count - args.gpus_each + 1, args.gpus_each)]
    free = free * args.per_gpu or [[]]
    waiting, running, results = list(args.variants), {}, []
    begin = max(1, round(STARTED_AT * epochs))
    schedule = [
        f"training.epochs={epochs}", f"training.gan_start_epoch={begin}", f"optimizer.scheduler_warmup_epochs={begin}",
        f"training.val_every_n_epochs={max(1, epochs // VALIDATIONS)}",
    ]  # fmt: skip
    while waiting or running:
        while waiting and free:
            name, gpus = waiting.pop(0), free.pop(0)
            sets, folder = [*schedule, *VARIANTS[name]], args.runs / name
            process = start(folder, words, sets, gpus, max(1, args.gpus_each))
            running[name] = (process, gpus, Result(name, folder, VARIANTS[name], False), time.monotonic())
        time.sleep(0.5)
        for name, (process, gpus, result, began) in list(running.items()):
            late = time.monotonic() - began - 60 * args.minutes
            if process.poll() is None and late > 0 and not result.stopped:
                result.stopped = True
                process.send_signal(signal.SIGTERM)  # it saves and ends by itself
            if process.poll() is None and late > GRACE_S:
                process.kill()
            if process.poll() is not None:
                del running[name]
                free.append(gpus)
                if process.returncode and not result.stopped:  # torchrun ends a stopped run with an error
                    print(f"{name} failed, exit code {process.returncode}:\n{tail(result.folder)}")
                else:
                    results.append(result)
                    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    if not results:
        sys.exit("no variant was trained to its end")
    return sorted(results, key=lambda result: args.variants.index(result.name))


def tail(folder: Path) -> str:
    """The last lines of a run's output."""
    return "\n".join(Path(f"{folder}.log").read_text().splitlines()[-15:])


if __name__ == "__main__":
    main()
