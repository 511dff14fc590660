"""`neuropbr export`: weights in other forms, and checks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from neuropbr_dist.commands.entry import entry
from neuropbr_dist.commands.flags import add_debug, add_set, assigned, new_parser
from neuropbr_dist.config import TrainConfig

SOURCE = "a run's folder, a checkpoint, or an exported file"


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `neuropbr export`."""
    p = new_parser("Checkpoints to single files, and from and to upstream's.", prog)
    commands = p.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_debug(made)
        return made

    inference = command("inference", "the generator alone, for load_generator")
    inference.add_argument("checkpoint", help=SOURCE)
    inference.add_argument("out", help="a .safetensors file, or a folder")

    whole = command("consolidate", "all shards in one file, optimizer state too")
    whole.add_argument("checkpoint", help="a run's folder, or a checkpoint")
    whole.add_argument("out", help="a .safetensors file")

    checked = command("check", "read every byte; exit code 1 if anything is damaged")
    checked.add_argument("path", help="a checkpoint, a run's folder (all of its checkpoints), or a file")

    program = command("program", "a torch.export program, run with torch alone")
    program.add_argument("checkpoint", help=SOURCE)
    program.add_argument("out", help="a .pt2 file")
    program.add_argument(
        "--size", type=int, metavar="N",
        help="the one side in pixels that it takes (default: the run's); short for --set data.image_size=N",
    )  # fmt: skip
    add_set(program, "data.image_size=N", "the same")

    theirs = command("from-upstream", "a .pth of NeuroPBR's own trainer")
    theirs.add_argument("pth", help="upstream's checkpoint")
    theirs.add_argument(
        "out", help="a run's folder, to infer from or to train on with --resume; or a .safetensors file"
    )
    add_set(
        theirs,
        "PART.FIELD=VALUE",
        "a field that the file doesn't tell (model.transformer_num_heads); repeatable",
    )
    theirs.add_argument("--no-discriminator", action="store_true", help="leave it out")
    theirs.add_argument(
        "--trust-pickle",
        action="store_true",
        help="load pickled objects; that runs code of the file's author",
    )

    ours = command("to-upstream", "a .pth that NeuroPBR's own trainer and inference load")
    ours.add_argument("checkpoint", help=SOURCE)
    ours.add_argument("out", help="a .pth file")
    return p


@entry
def run(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Write or check files; exit code 1 if what was checked is damaged."""
    args = parser(prog).parse_args(argv)
    from neuropbr_dist.inference import export, program, upstream

    match args.command:
        case "check":
            if not export.check(args.path):
                sys.exit(1)
            return
        case "inference":
            path = export.export_inference(args.checkpoint, args.out)
        case "consolidate":
            path = export.consolidate(args.checkpoint, args.out)
        case "program":
            sized, cfg = assigned(args.set, "data.image_size"), TrainConfig()
            (sized if args.size is None else sized.with_size(args.size)).apply(cfg)
            path = program.export_program(args.checkpoint, args.out, cfg.data.image_size)
        case "from-upstream":
            path = upstream.from_upstream(
                args.pth, args.out, trust_pickle=args.trust_pickle, discriminator=not args.no_discriminator,
                assignments=args.set,
            )  # fmt: skip
        case "to-upstream":
            path = upstream.to_upstream(args.checkpoint, args.out)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    print(f"Wrote {path} ({sum(file.stat().st_size for file in files) / 2**20:.1f} MiB)")
