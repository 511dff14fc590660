"""Package metadata. Ranges here; the tested versions are in requirements.lock."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = next(
    line.split('"')[1]
    for line in (here / "neuropbr_dist" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="neuropbr_dist",
    version=version,
    description="Distributed trainer for NeuroPBR: three rendered views in, four 2048x2048 PBR maps out",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=[*find_packages(include=["neuropbr_dist", "neuropbr_dist.*"]), "neuropbr_dist.ds_configs"],
    package_dir={"neuropbr_dist.ds_configs": "ds_configs"},
    package_data={"neuropbr_dist.report": ["assets/*"], "neuropbr_dist.ds_configs": ["*.json"]},
    install_requires=[
        # The vocabulary of ranges in the configuration's types.
        "annotated-types>=0.6",
        "torch>=2.11,<2.15",
        # The float32 masters are read where this version keeps them.
        "deepspeed==0.19.8",
        # Inflates PNG files and computes CRC-32 at memory speed.
        "isal>=1.7",
        "timm>=1.0.15",
        "numpy>=1.26",
        "pillow>=10.4",
        "pyyaml>=6.0",
        "safetensors>=0.4",
        "submitit>=1.5.2",
        "tensorboard>=2.16",
        "tqdm>=4.66",
    ],
    extras_require={
        # Attention on Hopper cards, a fifth faster than PyTorch's own (benchmarks/). For CUDA 13: flash-attn-4[cu13].
        "flash": ["flash-attn-4>=4.0.0b36,<5"],
        # Pictures that `data import` reads beyond Pillow's: EXR, TIFF of 16 and 32 bits.
        "import": ["OpenEXR>=3.3", "tifffile>=2024.1", "imagecodecs>=2024.1"],
        # MatSynth: local parquet files, or its stream from the hub.
        "matsynth": ["pyarrow>=16", "datasets>=3"],
        # Features and resampling for `infer --input-dir PHOTOS`; HEIC, as iPhones write it.
        "photos": ["opencv-python-headless>=4.10", "pillow-heif>=0.18"],
        # Features and resampling for `data register`, and for `data verify` of sets with cameras.
        "register": ["opencv-python-headless>=4.10"],
        # LPIPS in validation and of `infer --split`; it also needs AlexNet's ImageNet weights, which torchvision fetches.
        "lpips": ["lpips>=0.1.4,<0.2", "torchvision>=0.26"],
        "wandb": ["wandb>=0.17"],
        "dev": [
            "datasets>=3",
            "imagecodecs>=2024.1",
            "mypy>=1.13",
            "opencv-python-headless>=4.10",
            "OpenEXR>=3.3",
            "pillow-heif>=0.18",
            "pyarrow>=16",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "scikit-image>=0.24",
            "tifffile>=2024.1",
            "torchmetrics>=1.4",
            "wandb>=0.17",
        ],
    },
    entry_points={
        "console_scripts": [
            "neuropbr = neuropbr_dist.commands:main",
            # Earlier names of the same.
            *(
                f"neuropbr-{name} = neuropbr_dist.commands.{name}:run"
                for name in ("train", "infer", "data", "export", "report", "submit")
            ),
        ]
    },
)
