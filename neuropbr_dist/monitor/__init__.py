"""Views of a run for a person: console, log files, pictures, throughput. Called, never calls back."""

from neuropbr_dist.monitor.console import Console
from neuropbr_dist.monitor.figure import comparison
from neuropbr_dist.monitor.pictures import Look, maps_to_images, save_png, take_look
from neuropbr_dist.monitor.throughput import Meter, Throughput
from neuropbr_dist.monitor.writers import RunLog

__all__ = [
    "Console",
    "Look",
    "Meter",
    "RunLog",
    "Throughput",
    "comparison",
    "maps_to_images",
    "save_png",
    "take_look",
]
