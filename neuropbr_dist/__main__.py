"""`python -m neuropbr_dist`: the command `neuropbr`, for launchers that start a module."""

import sys

from neuropbr_dist.commands import main

if __name__ == "__main__":
    # `deepspeed --module` puts a flag of its own before the command's name.
    main([word for word in sys.argv[1:] if not word.startswith("--local_rank=")], "python -m neuropbr_dist")
