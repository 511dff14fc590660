"""`neuropbr data`: what is done to data sets outside of training, a file a command."""

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.table import Table

COMMANDS = Table(
    "Import, generate, register, verify or pack a data set.",
    {
        "import": (
            "neuropbr_dist.commands.data.import_",
            "make a folder of materials of other people's packs, or of MatSynth",
        ),
        "generate": (
            "neuropbr_dist.commands.data.generate",
            "write built-in materials in the guide's layout",
        ),
        "register": (
            "neuropbr_dist.commands.data.register",
            "find the cameras of a set that has none",
        ),
        "verify": (
            "neuropbr_dist.commands.data.verify",
            "decode every file, list every fault; exit code 1 if any",
        ),
        "pack": (
            "neuropbr_dist.commands.data.pack",
            "verify, and decode once into a set that loads at memory speed",
        ),
    },
)
run = entry(COMMANDS.run)
