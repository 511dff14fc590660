"""`launch/benchmark.py`: everything that measures, by name."""

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.table import Table

COMMANDS = Table(
    "Measure; figures go to a dated file in benchmarks/results/.",
    {
        "step": ("benchmarks.step_table", "time and memory of GAN steps on random tensors"),
        "memory": (
            "benchmarks.memory",
            "peak of each memory plan beside its estimate; what fits a smaller card",
        ),
        "compile": ("benchmarks.compiling", "the first step with an empty and a filled compile cache"),
        "scaling": ("benchmarks.scaling", "samples/s a GPU on 1, 2, 4, ... GPUs of this machine"),
        "attention": ("benchmarks.attention", "backends of attention at the model's shape"),
        "kernels": ("benchmarks.kernels", "hand-written kernels beside plain and compiled torch"),
        "shading": (
            "benchmarks.shading",
            "the renderer: its time on a GPU; its pictures beside a path tracer's",
        ),
        "loader": ("benchmarks.loader", "samples/s from PNG and packed sets"),
        "containers": ("benchmarks.containers", "other libraries' files beside a packed set's"),
        "checkpoint": ("benchmarks.checkpoint", "stall of a save, bytes, phases of a restart"),
        "engines": ("benchmarks.engines", "do all engines agree, and what do they hold in memory"),
        "elastic": ("benchmarks.elastic", "a run whose number of ranks changes, beside one left alone"),
        "quality": ("benchmarks.quality", "variants of one run, trained side by side"),
        "gallery": ("benchmarks.gallery", "the README's picture of held-out materials"),
        "plane": ("benchmarks.plane", "views as they are beside views rectified by their cameras"),
        "register": ("benchmarks.register", "cameras that data register finds, beside the true ones"),
        "photos": ("benchmarks.photos", "photos of built-in materials beside their true cameras"),
        "upstream": ("benchmarks.upstream", "converted checkpoints against upstream's own classes"),
        "upstream-training": (
            "benchmarks.upstream_training",
            "upstream's own trainer, judged as the recipe is",
        ),
        "plan": ("benchmarks.plan", "hours and memory of a run, stage by stage, before it is started"),
        "cost-model": ("benchmarks.cost_model", "the tables of docs/scaling.md, by formula"),
    },
)
run = entry(COMMANDS.run)
