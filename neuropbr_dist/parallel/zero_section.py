"""DeepSpeed's own judgement of a `zero_optimization` section, as a sentence."""

from __future__ import annotations

import copy
from typing import Any

from neuropbr_dist.errors import UserError
from neuropbr_dist.parallel.zero import import_deepspeed


def check_zero_section(section: dict[str, Any], path: str) -> None:
    """Let DeepSpeed read the section before any engine is built.

    Args:
        section: `zero_optimization` of the file, complete.
        path: the file, for messages.

    Raises:
        UserError: keys that DeepSpeed doesn't know, or values that it doesn't take; all are named.
    """
    import_deepspeed()
    from deepspeed.runtime.zero.config import get_zero_config
    from pydantic import ValidationError

    try:
        get_zero_config({"zero_optimization": copy.deepcopy(section)})
    except ValidationError as error:
        faults = [fault(found) for found in error.errors()]
        raise UserError(f"{path}: {'; '.join(faults)}") from None


def fault(found: Any) -> str:
    """Return one of pydantic's findings with the key's full name."""
    name = ".".join(["zero_optimization", *map(str, found["loc"])])
    if found["type"] == "extra_forbidden":
        return f"{name}: DeepSpeed knows no such key; remove it, or correct its name"
    return f"{name} = {found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}"
