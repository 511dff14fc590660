"""The command line: one file a command, its parser and its call; a table finds it by name.

Here alone lives `argparse`: what is called from here takes values with types.
"""

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.table import Table

COMMANDS = Table(
    "NeuroPBR: three rendered views of a material in, its four PBR maps out.",
    {
        "train": ("neuropbr_dist.commands.train", "train the GAN, or with --debug look at one batch"),
        "infer": ("neuropbr_dist.commands.infer", "predict the maps of samples or of renders"),
        "data": ("neuropbr_dist.commands.data", "import, generate, verify or pack a data set"),
        "export": ("neuropbr_dist.commands.export", "write weights in other forms, check checkpoints"),
        "report": ("neuropbr_dist.commands.report", "write a run's page"),
        "submit": ("neuropbr_dist.commands.submit", "submit a training run through submitit"),
        "doctor": ("neuropbr_dist.commands.doctor", "compare the nodes that a run would be on"),
        "demo": ("neuropbr_dist.commands.demo", "train, infer and report on built-in materials"),
    },
)
main = entry(COMMANDS.run)
