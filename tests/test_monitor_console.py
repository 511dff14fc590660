"""What a run prints, on a terminal and into a file; and the figures it prints."""

import fcntl
import logging
import math
import os
import pty
import re
import struct
import termios
import time
from contextlib import redirect_stdout, suppress

import pytest
import torch

from neuropbr_dist.logs import CONSOLE, to_console
from neuropbr_dist.monitor import Console, Meter, Throughput
from neuropbr_dist.monitor.console import number

SPEED = Throughput(
    ms_per_step=1042.4, samples_per_s=3.84, data_wait=0.012, memory_gib=29.81, reserved_gib=31.0
)


def on_a_terminal(action):
    """What `action` prints to a (real, pseudo) terminal of 120 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with open(slave, "w") as terminal, redirect_stdout(terminal):
        action()
    printed = b""
    with suppress(OSError):  # EIO: all is read, and nobody writes any more
        while chunk := os.read(master, 65536):
            printed += chunk
    os.close(master)
    return printed.decode().replace("\r\n", "\n")


@pytest.fixture
def shown():
    """The package's loggers on the console, as a command has them; gives the package's logger."""
    to_console(outlive=True)
    return logging.getLogger("neuropbr_dist")


def test_a_stdout_that_is_gone_is_said_once_and_training_goes_on(monkeypatch, capsys, shown):
    """As behind `| head`, or with a full disk under the log."""

    def gone():
        read, write = os.pipe()
        os.close(read)
        return open(write, "w")

    monkeypatch.setattr("sys.stdout", gone())
    shown.info("one")
    shown.info("two")
    assert (
        capsys.readouterr().err == "stdout: [Errno 32] Broken pipe; the run goes on and says no more here\n"
    )
    to_console()
    unread = gone()
    monkeypatch.setattr("sys.stdout", unread)
    with pytest.raises(BrokenPipeError):  # other commands end there
        shown.info("three")
    with pytest.raises(BrokenPipeError):
        unread.close()


def test_a_warning_says_that_it_is_one_and_other_ranks_are_silent(capsys, shown):
    shown.warning("careful")
    to_console(rank=1)
    shown.error("not here")
    assert capsys.readouterr() == ("WARNING: careful\n", "")


def test_a_program_with_its_own_logging_is_left_alone(capsys):
    to_console(default=True)  # pytest has handlers at the root
    assert CONSOLE not in logging.getLogger("neuropbr_dist").handlers
    Console().saved("somewhere")
    assert capsys.readouterr().out == ""


def one_epoch(console):
    console.start_epoch(10, 4, done=1)
    for step in range(38, 41):
        console.advance()
        if step == 39:
            console.log(step, 10, {"G_loss": 0.1234, "D_loss": 0.5678}, 2e-4, SPEED)
    console.summary(10, 0.1234, 0.5678)
    console.validation(10, 0.11)
    console.saved("checkpoints/checkpoint_epoch_0010.pth")
    console.saved_best("checkpoints/best_model.pth")


AFTER_THE_EPOCH = """\
Epoch 10 Summary:
  Generator Loss: 0.123
  Discriminator Loss: 0.568
[Validation] Epoch 10 - Loss: 0.110
Saved checkpoint: checkpoints/checkpoint_epoch_0010.pth
Saved best model: checkpoints/best_model.pth
"""


def test_a_file_gets_plain_lines(capsys, shown):
    one_epoch(Console())
    captured = capsys.readouterr()
    assert captured.out == (
        "Epoch 10  step 39  G_loss 0.123  D_loss 0.568  lr 0.0002  1042 ms/step  3.84 samples/s  "
        "data wait 1.2%  29.8 GiB\n" + AFTER_THE_EPOCH
    )
    assert captured.err == ""


def test_a_terminal_gets_the_guides_bar(shown):
    bar, after = on_a_terminal(lambda: one_epoch(Console())).split("Epoch 10 Summary:")
    last = bar.strip().split("\r")[-1]
    assert re.fullmatch(r"Epoch 10: 100%\|.*\| 4/4 \[.*(it/s|s/it), G_loss=0\.123, D_loss=0\.568\]", last)
    assert "Epoch 10 Summary:" + after == AFTER_THE_EPOCH


def test_a_line_amid_an_epoch_stands_above_the_bar(shown):
    def save_amid_an_epoch():
        console = Console()
        console.start_epoch(3, 10)
        console.saved("somewhere")
        console.close()

    before, after = on_a_terminal(save_amid_an_epoch).split("\rSaved checkpoint: somewhere\n")
    assert "Epoch 3:   0%" in before and "Epoch 3:   0%" in after


def test_without_a_discriminator_its_line_is_left_out(capsys, shown):
    Console().summary(1, 0.5)
    assert capsys.readouterr().out == "Epoch 1 Summary:\n  Generator Loss: 0.500\n"


def test_other_ranks_print_nothing(capfd, shown):
    to_console(rank=1)
    one_epoch(Console(enabled=False))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (12.3456, "12.346"), (0.05678, "0.0568"), (-1.2e-5, "-1.2e-05"), (float("nan"), "nan")],
)
def test_numbers_are_short_and_small_ones_stay_visible(value, text):
    assert number(value) == text


# --- throughput


def test_meter_divides_by_steps_and_samples(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = Meter("cpu")
    for _ in range(4):
        with meter.waiting():
            now[0] += 0.5
        now[0] += 1.5
        meter.step(samples=6)
    speed = meter.read()
    assert (speed.ms_per_step, speed.samples_per_s, speed.data_wait) == (2000.0, 3.0, 0.25)

    now[0] += 60.0  # a validation
    meter.restart()
    now[0] += 1.0
    meter.step(samples=6)
    assert meter.read().samples_per_s == 6.0
    now[0] += 1.0
    assert math.isnan(meter.read().ms_per_step)  # no step in it


def test_peak_memory_is_the_process_own_and_grows_with_it():
    before = Meter("cpu").read().memory_gib
    held = torch.ones(2**25)  # 128 MiB
    after = Meter("cpu").read()
    assert after.memory_gib >= max(before, held.nbytes / 2**30)
    assert set(after.scalars()) == {
        f"speed/{name}"
        for name in ("ms_per_step", "samples_per_s", "data_wait", "memory_gib", "reserved_gib")
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_peak_memory_on_cuda_counts_tensors():
    held = torch.ones(2**26, device="cuda")
    speed = Meter("cuda").read()
    assert held.nbytes / 2**30 <= speed.memory_gib <= speed.reserved_gib
