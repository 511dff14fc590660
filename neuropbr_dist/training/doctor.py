"""`neuropbr doctor`: would this run find the same machine on every node?"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from neuropbr_dist.cluster import detect, pick_device, process_group
from neuropbr_dist.cluster.doctor import bandwidth_line, diagnose, examine
from neuropbr_dist.config import TrainConfig, as_one_stage, stages_of
from neuropbr_dist.data.open import first_files
from neuropbr_dist.data.sources import BUILTIN_SIZE
from neuropbr_dist.logs import to_console
from neuropbr_dist.ranks import on_rank_0
from neuropbr_dist.training.facts import code_hash
from neuropbr_dist.training.setup import SampleFacts, set_up
from neuropbr_dist.training.stages import check_stages

log = logging.getLogger(__name__)

STATE_BYTES = 12  # a parameter and Adam's two moments, float32


def doctor(cfg: TrainConfig) -> bool:
    """Show the table of all ranks; return whether all is well, on every rank."""
    env = detect()
    to_console(env.rank, default=True)
    device = pick_device(cfg.training.device, env)
    check_stages(cfg, env.world_size)
    last = as_one_stage(cfg, stages_of(cfg)[-1])
    setup = set_up(last, env, device, SampleFacts(side=last.data.image_size or BUILTIN_SIZE))
    with ExitStack() as stack:
        if env.distributed:
            stack.enter_context(process_group(env, device, cfg.training.timeout_minutes))
        sample = on_rank_0(lambda: first_files(cfg.data))
        saves = (cfg.training.keep_latest + 1) * STATE_BYTES * sum(setup.parameters.values())
        examinations = examine(device, code_hash(), sample, Path(cfg.training.checkpoint_dir), saves)
    lines, well = diagnose(examinations)
    log.info("\n".join([*lines, bandwidth_line(examinations, device.type)]))
    nodes = len({examination.host for examination in examinations})
    log.info(f"{len(examinations)} rank(s) on {nodes} node(s): {'all well' if well else 'not well, see !'}")
    return well
