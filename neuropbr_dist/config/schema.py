"""What a run is: plain dataclasses, a docstring under each field.

The field names are those of the NeuroPBR training guide; the docstrings feed
docs/configuration.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from neuropbr_dist.config.frozen import Freezable


@dataclass(kw_only=True, slots=True)
class DataConfig(Freezable):
    """Where samples come from and how they are cut into train and validation."""

    input_dir: str | None = None
    """Folder of renders (`clean/`, `dirty/`, `render_metadata.json`). None: `./data/input` if it exists, else built-in materials."""
    output_dir: str | None = None
    """Folder of ground-truth maps, one folder a material. None: `./data/output` if it exists."""
    metadata_path: str | None = None
    """Sample to material map. None: `{input_dir}/render_metadata.json`."""
    packed_dir: str | None = None
    """Packed set (`launch/data.py pack`) instead of the two folders (`--data`); the same samples in the same order."""
    image_size: int | None = None
    """Side in pixels that views and maps are resized to. None: the set's own size (built-in materials: 2048)."""
    render_curriculum: Literal[0, 1, 2] = 0
    """0: clean renders; 1: every clean and every dirty entry on disk; 2: dirty renders."""
    use_dirty_renders: bool = False
    """Legacy flag of the guide: the same as `render_curriculum = 2`."""
    val_ratio: float = 0.1
    """Share of materials (or samples) held out: `max(1, round(val_ratio * n))` of them."""
    split_by: Literal["material", "sample"] = "material"
    """Unit of the train/validation split. `material`: no material stands on both sides."""
    num_workers: int = 4
    """Loader processes per rank. 0 loads in the training process."""
    prefetch_factor: int = 2
    """Batches that each loader process prepares ahead."""
    pin_memory: bool = True
    """Page-locked host memory for copies to a GPU. Ignored on CPU."""
    cache_mib: int = 512
    """Memory in each loader process for decoded materials that several samples share (PNG files)."""
    augment_flips: bool = False
    """Show samples flipped left to right and top to bottom, in half of the cases each; normals follow."""
    augment_rotations: bool = False
    """Show samples turned by 0, 90, 180 or 270 degrees; normals follow."""
    builtin: bool = False
    """Train on built-in materials where no data are named, even if there is a `./data`. A run that found none sets it, so that a resume doesn't take a `./data` that came later."""
    builtin_count: int = 64
    """Number of built-in procedural samples (used when no folder is named and `./data` has none)."""
    builtin_cache: str | None = None
    """Folder in which built-in samples are kept. None: `~/.cache/neuropbr_dist` (or `$XDG_CACHE_HOME`)."""


@dataclass(kw_only=True, slots=True)
class TransformConfig(Freezable):
    """Normalisation of the views, done on the device."""

    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Mean of R, G, B in [0, 1]."""
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Standard deviation of R, G, B; each above 0."""
    use_imagenet_stats: bool = False
    """Take ImageNet's mean and std instead, as a pretrained ResNet expects."""


@dataclass(kw_only=True, slots=True)
class ModelConfig(Freezable):
    """Generator (encoder, cross-view fusion, decoder) and discriminator."""

    encoder_type: Literal["resnet", "unet"] = "resnet"
    """Encoder family, shared by the three views."""
    encoder_backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50"
    """ResNet depth (`encoder_type = resnet`)."""
    encoder_stride: Literal[1, 2] = 1
    """Stride of the ResNet's first convolution. 1 keeps full resolution in the stem; 2 halves it and the decoder gets a 2x super-resolution head."""
    encoder_channels: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1024, 2048])
    """Channels per level (`encoder_type = unet`); each level after the first halves the resolution."""
    encoder_pretrained: bool = True
    """Start the ResNet from ImageNet weights when they can be had (local cache or download); says so when they can't."""
    encoder_norm: Literal["auto", "group", "batch", "sync_batch", "frozen_batch"] = "auto"
    """Encoder normalisation. `auto`: `frozen_batch` with pretrained weights, else `group`."""
    norm: Literal["group", "batch", "sync_batch", "frozen_batch"] = "group"
    """Normalisation in decoder and discriminator. `group` gives the same output in train and eval mode at any micro-batch."""
    freeze_backbone: bool = False
    """Train no weight of the ResNet encoder."""
    freeze_bn: bool = False
    """Train no scale or shift of the encoder's norm layers and never move their running statistics."""
    use_transformer: bool = True
    """Fuse the views with a vision transformer; False: concatenate and project."""
    transformer_dim: int = 2048
    """Token width."""
    transformer_num_heads: int = 32
    """Attention heads; must divide `transformer_dim`."""
    transformer_depth: int = 4
    """Number of transformer blocks."""
    transformer_mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over `transformer_dim`."""
    transformer_attn_drop: float = 0.0
    """Dropout on attention weights. Above 0 it costs more than half the attention's speed."""
    transformer_proj_drop: float = 0.0
    """Dropout after projections."""
    transformer_drop_path_rate: float = 0.0
    """Stochastic depth rate of the last block; earlier blocks ramp up to it."""
    use_gan: bool = True
    """Train a discriminator and its loss."""
    discriminator_type: Literal["configurable"] = "configurable"
    """PatchGAN with a chosen number of layers."""
    discriminator_n_layers: int = 6
    """Stride-2 layers. Receptive field: 4 layers 142 px, 6 layers 574 px."""
    discriminator_ndf: int = 64
    """Filters of the first layer."""
    discriminator_use_sigmoid: bool = False
    """End in a sigmoid (with `loss.gan_loss_type = bce` only)."""


@dataclass(kw_only=True, slots=True)
class LossConfig(Freezable):
    """Weights of the loss terms."""

    w_l1: float = 1.0
    """Per-pixel L1 over the maps."""
    w_ssim: float = 0.3
    """1 - SSIM of the albedo."""
    w_normal: float = 0.5
    """1 - cos of the angle between predicted and true normals."""
    w_gan: float = 0.05
    """Adversarial term of the generator."""
    w_discriminator: float = 1.0
    """Weight of the discriminator's own loss."""
    w_albedo: float = 1.0
    """Weight of albedo inside the L1 term."""
    w_roughness: float = 1.0
    """Weight of roughness inside the L1 term."""
    w_metallic: float = 1.0
    """Weight of metallic inside the L1 term."""
    w_normal_map: float = 1.0
    """Weight of the normal map inside the L1 term."""
    gan_loss_type: Literal["hinge", "bce"] = "hinge"
    """Adversarial loss."""
    gan_label_smoothing: float = 0.0
    """The discriminator's target for true maps is 1 less this (`bce` only): it can't grow ever surer of them."""
    custom: dict[str, float] = field(default_factory=dict)
    """Registered custom loss name to weight (`neuropbr_dist.objectives.register_loss`)."""
    custom_module: str | None = None
    """Python file that registers custom losses; imported at start."""


@dataclass(kw_only=True, slots=True)
class OptimizerConfig(Freezable):
    """AdamW for both networks, and the learning-rate schedule."""

    g_lr: float = 2e-4
    """Generator's peak learning rate."""
    d_lr: float = 2e-4
    """Discriminator's peak learning rate."""
    g_betas: list[float] = field(default_factory=lambda: [0.5, 0.999])
    """Generator's Adam betas."""
    d_betas: list[float] = field(default_factory=lambda: [0.5, 0.999])
    """Discriminator's Adam betas."""
    g_weight_decay: float = 1e-4
    """Generator's decoupled weight decay."""
    d_weight_decay: float = 0.0
    """Discriminator's decoupled weight decay."""
    eps: float = 1e-8
    """Adam's epsilon."""
    scheduler: Literal["cosine", "step", "plateau", "none"] = "cosine"
    """Learning-rate schedule, applied per step after warm-up."""
    scheduler_warmup_epochs: float = 5
    """Epochs of linear warm-up from 0 to the peak."""
    scheduler_min_lr: float = 1e-6
    """Floor of the schedule."""
    scheduler_epochs: float | None = None
    """Horizon of the schedule. None: `training.epochs` at the first start, then saved with the run."""
    step_size: float = 30
    """Epochs between drops (`scheduler = step`)."""
    gamma: float = 0.1
    """Factor of a drop (`scheduler = step`)."""
    patience: int = 10
    """Validations without improvement before a drop (`scheduler = plateau`)."""
    factor: float = 0.5
    """Factor of a drop (`scheduler = plateau`)."""


@dataclass(kw_only=True, slots=True)
class TrainingConfig(Freezable):
    """The loop: how long, on what, how often to look and to save."""

    epochs: int = 100
    """Total epochs of the run, also after a resume."""
    batch_size: int = 1
    """Largest micro-batch a device takes."""
    global_batch_size: int | None = None
    """Samples per optimizer step over all ranks. None: `batch_size x world size` at the first start, then saved with the run."""
    seed: int = 42
    """Seed of the split, the order, the initial weights and every other random choice."""
    device: str = "auto"
    """`auto` (CUDA, then MPS, then CPU), `cuda`, `cuda:N`, `mps` or `cpu`."""
    engine: Literal["auto", "single", "ddp", "fsdp", "deepspeed"] = "auto"
    """How the generator is spread. `auto`: `deepspeed` with `--ds`, `fsdp` on several ranks, else `single`."""
    engine_discriminator: Literal["same", "single", "ddp", "fsdp", "deepspeed"] = "same"
    """How the discriminator is spread."""
    ds_config: str | None = None
    """DeepSpeed JSON of the generator (`--ds`)."""
    ds_config_discriminator: str | None = None
    """DeepSpeed JSON of the discriminator (`--ds-discriminator`). None: the generator's."""
    shard: Literal["world", "node"] = "world"
    """FSDP: shard over all ranks, or inside a node and replicate across nodes (HSDP)."""
    cpu_offload: bool = False
    """FSDP: keep parameters, gradients and optimizer state in host memory."""
    use_amp: bool = True
    """Mixed precision. False: `precision = fp32`."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Compute precision; weights, moments and losses stay float32. `auto`: bf16 on GPUs that have it, fp16 on others, fp32 on CPU."""
    memory: Literal["auto", "fast", "balanced", "low"] = "auto"
    """Memory plan: `fast` keeps all activations, `balanced` computes those of high resolutions again in backward, `low` all but attention. `auto`: the fastest that is estimated to fit the device."""
    activation_checkpointing: Literal["plan", "none", "selective", "full"] = "plan"
    """Recompute activations in backward: as `memory` says, or alike in every segment of the generator. `selective` keeps attention outputs; `full` keeps segment inputs only."""
    compile: Literal["auto", "off", "blocks"] = "auto"
    """torch.compile of each block. `auto`: on CUDA only."""
    kernels: bool = True
    """Hand-written kernels on a GPU in half precision, and FlashAttention-4 where it is installed; false: plain PyTorch, compiled, as everywhere else."""
    grad_clip_norm: float | None = 1.0
    """Largest gradient norm of each network. None: no clipping."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the generator's weights, `average <- decay * average + (1 - decay) * weights` a step, and use it in validation, inference and export. None: off. 0.999 averages over about 1,000 steps."""
    gan_start_epoch: int = 5
    """Epoch, counted from 1, in which the adversarial losses begin; 0 or 1: from the start."""
    d_steps_per_g_step: int = 1
    """Discriminator updates per generator update."""
    deterministic: bool = False
    """Deterministic kernels (slower on GPU)."""
    max_skipped_steps: int = 10
    """Non-finite losses or gradients in a row before the run stops."""
    timeout_minutes: float = 10
    """Limit on any one collective; a hung rank ends the run after it."""
    val_every_n_epochs: int = 1
    """Epochs between validations."""
    checkpoint_dir: str = "./checkpoints"
    """The run's folder: config, metrics, logs and checkpoints."""
    save_every_n_epochs: int = 5
    """Epochs between periodic checkpoints (kept for good)."""
    save_latest_every_n_epochs: int = 1
    """Epochs between saves of `latest`. More than 1 where an epoch is short against a save (a small set, a large model)."""
    save_every_n_steps: int | None = None
    """Steps between saves of `latest` besides those at epoch ends. None: at epoch ends only."""
    save_every_n_minutes: float | None = None
    """Minutes between saves of `latest`, by rank 0's clock. None: epochs and steps alone decide."""
    save_best_only: bool = False
    """Keep `best_model` and `latest` only, no periodic checkpoints."""
    keep_latest: int = 2
    """Number of most recent `latest` saves kept; the older one is the fall-back for a damaged newer one."""
    log_every_n_steps: int = 10
    """Steps between log lines; the host reads the device only then."""
    log_images_every_n_epochs: int = 5
    """Epochs between pictures in TensorBoard."""
    log_samples: bool = False
    """Write the names of each step's samples to `{checkpoint_dir}/samples.jsonl`."""
    use_tensorboard: bool = True
    """Write TensorBoard events to `{checkpoint_dir}/logs`."""
    use_wandb: bool = False
    """Log to Weights & Biases as well."""
    wandb_project: str = "neuropbr"
    """W&B project."""
    wandb_run_name: str | None = None
    """W&B run name."""


@dataclass(kw_only=True, slots=True)
class TrainConfig(Freezable):
    """All of a run, in six parts."""

    data: DataConfig = field(default_factory=DataConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
