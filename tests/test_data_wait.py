"""A run that waits for its data says so, once; the share is in metrics and in TensorBoard."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neuropbr_dist.monitor import Console, Throughput
from tests.support.material_files import write_set
from tests.support.said import said
from tests.support.train_runs import command, tiny_words

SPEED = Throughput(ms_per_step=1000, samples_per_s=1, data_wait=0.01, memory_gib=1, reserved_gib=1)


def hints(*waits):
    console = Console()
    with said() as lines:
        for step, wait in enumerate(waits):
            console.log(step, 1, {"G_loss": 0.1}, 1e-4, replace(SPEED, data_wait=wait))
    return [line for line in lines if "waiting for data" in line]


def test_one_line_when_the_share_passes_five_percent():
    (hint,) = hints(0.01, 0.049, 0.2, 0.3)
    assert hint.startswith(
        "20% of the time goes into waiting for data: raise data.num_workers, or pack the set"
    )
    assert "--data" in hint


def test_none_below_it_nor_for_the_start_of_the_loaders_processes():
    assert hints(0.9, 0.05, 0.0) == []


@pytest.mark.multiprocess
def test_a_run_on_large_pictures_says_so_and_logs_the_share(tmp_path):
    """Decoding 512 px pictures in the training process, to train a tiny model at 32 px."""
    pictures = write_set(tmp_path, {f"sample_{i:04d}": f"material_{i}" for i in range(6)}, size=512)
    words = tiny_words(
        data__image_size=32, data__cache_mib=0, training__epochs=3, training__use_tensorboard=True
    )
    words[1], words[3] = map(str, pictures)
    ended = command("--checkpoint-dir", tmp_path / "run", *words)
    assert ended.code == 0, ended.err
    assert ended.out.count("of the time goes into waiting for data") == 1, ended.out
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    shares = [line["speed/data_wait"] for line in logged if "speed/data_wait" in line]
    events = EventAccumulator(str(tmp_path / "run/logs"))
    events.Reload()
    shown = [event.value for event in events.Scalars("speed/data_wait")]
    assert len(shown) == len(shares) >= 3 and shown == pytest.approx(shares)
