"""A trained generator outside of training: load it, run it on three views, export it.

from neuropbr_dist.inference import load_generator
model = load_generator("model.safetensors").cuda()
maps = model(views)
"""

from neuropbr_dist.checkpoint.tensor_file import TensorFile, read_tensor_file
from neuropbr_dist.inference.export import check, consolidate, export_inference
from neuropbr_dist.inference.generator import InferenceGenerator, load_generator
from neuropbr_dist.inference.predict import predict

__all__ = [
    "InferenceGenerator",
    "TensorFile",
    "check",
    "consolidate",
    "export_inference",
    "load_generator",
    "predict",
    "read_tensor_file",
]
