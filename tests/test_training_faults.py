"""What a run says of updates that it left out."""

import logging

import pytest
import torch

from neuropbr_dist.errors import UserError
from neuropbr_dist.parallel import StepResult
from neuropbr_dist.training.faults import FaultWatch
from neuropbr_dist.training.step import GanStepResult


@pytest.mark.parametrize("loss, what", [(float("nan"), "loss"), (1.0, "gradient of finite losses")])
def test_a_fault_of_the_arithmetic_is_told_from_one_of_the_data(caplog, loss, what):
    left_out = StepResult(torch.tensor(float("nan")), torch.tensor(False))
    watch, skipped = FaultWatch(2), {"generator": 0, "discriminator": 0}
    for step in (1, 2):
        watch.note(step, ["wood"], GanStepResult({"G_loss": torch.tensor(loss)}, left_out, None))
    with caplog.at_level(logging.WARNING), pytest.raises(UserError) as error:
        watch.collect(skipped)
    assert f"step 2: non-finite {what}, generator not updated (samples: wood)" in caplog.text
    assert ("training.kernels = false" in str(error.value)) == (loss == 1.0)
    assert skipped == {"generator": 2, "discriminator": 0}
