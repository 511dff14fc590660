"""Check of a set's pictures before a run, by all ranks, each of its share."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from neuropbr_dist.data.files.decode import Role
from neuropbr_dist.data.files.headers import HeaderCheck, check_headers
from neuropbr_dist.data.files.layout import list_faults
from neuropbr_dist.errors import UserError
from neuropbr_dist.ranks import all_gather_object, on_each_rank, rank, world_size


def checked_side(
    where: Path | str,
    roles: Mapping[Path, Role],
    image_size: int | None,
    run_folder: Path,
    known_faults: Sequence[str] = (),
) -> tuple[int, int | None]:
    """Return the side of a set's pictures and their own one, after every rank has looked at its share of their headers.

    Collective.

    Args:
        where: the set, for the message.
        roles: every picture with its role.
        image_size: the side that they are resized to; None: their own, which must be one.
        run_folder: where each rank keeps the headers that it has seen.
        known_faults: of the set, to be told with the others.

    Raises:
        UserError: on all ranks: all faults in one message.
    """

    def own_share() -> HeaderCheck:
        run_folder.mkdir(parents=True, exist_ok=True)
        seen = run_folder / f"headers-{rank()}.json"
        return check_headers(roles, image_size, rank=rank(), world_size=world_size(), cache=seen)

    checked = on_each_rank(own_share) if roles else HeaderCheck([], None)
    found = by_host(all_gather_object((socket.gethostname(), checked.faults)))
    faults = [*known_faults, *found]
    if faults:
        raise UserError(f"{where}: the data set has faults, nothing was trained: {list_faults(faults)}")
    size = image_size or checked.native_size
    assert size is not None  # an unreadable first picture is a fault
    return size, checked.native_size


def by_host(found: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Return all ranks' faults, sorted; of several hosts each is named: one may see what others don't."""
    several = len({host for host, _ in found}) > 1
    return sorted(
        {f"{fault} (on {host})" if several else fault for host, faults in found for fault in faults}
    )
