"""NeuroPBR, distributed: three rendered views in, four PBR maps out."""

__version__ = "0.1.0"
