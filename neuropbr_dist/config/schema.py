"""Configuration of a run: plain dataclasses, a range in the type and a docstring under each field.

The field names are those of the NeuroPBR training guide. Types and docstrings feed
docs/configuration.md, and a value outside of its type is refused wherever it comes from.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len

Text = Annotated[str, Len(1)]
PositiveInt = Annotated[int, Interval(ge=1)]
NonNegativeInt = Annotated[int, Interval(ge=0)]
PositiveFloat = Annotated[float, Interval(gt=0)]
NonNegativeFloat = Annotated[float, Interval(ge=0)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
Share = Annotated[float, Interval(ge=0, le=1)]
InnerFraction = Annotated[float, Interval(gt=0, lt=1)]
Betas = Annotated[list[Fraction], Len(2, 2)]
Side = Annotated[int, Interval(ge=16)]


class Freezable:
    """Base of the configuration's dataclasses: fields can be assigned until `frozen` has made its copy."""

    __slots__ = ("_frozen",)  # a copy and a pickle take it along, after the fields

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_frozen", False):
            raise FrozenInstanceError(
                f"{type(self).__name__}.{name}: a run that is set up doesn't change; `with_fields` makes another"
            )
        super().__setattr__(name, value)


@dataclass(kw_only=True, slots=True)
class DataConfig(Freezable):
    """Source of the samples, and their split into train and validation."""

    input_dir: Text | None = None
    """Folder of renders (`clean/`, `dirty/`, `render_metadata.json`). None: `./data/input` if it exists, else built-in materials."""
    output_dir: Text | None = None
    """Folder of ground-truth maps, one folder a material. None: `./data/output` if it exists."""
    metadata_path: Text | None = None
    """Sample to material map. None: `{input_dir}/render_metadata.json`."""
    packed_dir: Text | None = None
    """Packed set (`launch/data.py pack`) instead of the two folders (`--data`); the same samples in the same order."""
    materials_dir: Text | None = None
    """Materials alone (`--materials`): a folder of maps a material, as `launch/data.py import` writes, or a packed set. Their views are rendered."""
    render: Literal["auto", "stored", "online"] = "auto"
    """Source of the views: `stored` with the set, or rendered anew for each sample on the device (`online`), for which a set's maps are enough. `auto`: `stored` where views are named, `online` where only materials are, `stored` for built-in ones; settled at the first start."""
    renders_per_epoch: PositiveInt | None = None
    """Number of times that an epoch shows each material (`render = online`). None: so many that an epoch has at least 4,000 samples; settled at the first start."""
    environments_dir: Text | None = None
    """Folder of panoramas (.hdr, .exr) that light rendered views, turned at random (`render = online`). None: procedural skies alone."""
    bench_scenes: Share = 0.25
    """Share of the samples that are seen and lit as built-in materials' stored views are; the others by cameras and light of many kinds (`render = online`)."""
    crop: Share = 0.0
    """Share of the training samples that show a part of the material, enlarged up to twice (`render = online`)."""
    tint: Share = 0.0
    """Largest tint of a training sample's albedo: each channel's light is changed by a factor of exp(-tint) to exp(tint) (`render = online`)."""
    roughness_shift: Annotated[float, Interval(ge=0, le=0.5)] = 0.0
    """Largest shift of a training sample's roughness, up or down. Off the bench alone (`render = online`)."""
    any_roughness: Share = 0.0
    """Share of the training samples whose roughness is as smooth or rough, as even or uneven as chance will have it, whatever the material: what they look like must tell it. Off the bench alone (`render = online`)."""
    relief: Annotated[float, Interval(ge=0, le=2)] = 0.0
    """Largest change of a training sample's relief: its slopes are changed by a factor of exp(-relief) to exp(relief). Off the bench alone (`render = online`)."""
    other_relief: Share = 0.0
    """Share of the training samples that have the relief of another material: what they look like must tell it. Off the bench alone (`render = online`)."""
    mixtures: Share = 0.0
    """Share of the training samples that are mixtures of two: of materials by a smooth mask, or of stored samples, at each place one or the other (`align = plane`)."""
    image_size: Side | None = None
    """Side in pixels that views and maps are resized to. None: the set's own size (built-in materials: 2048)."""
    render_curriculum: Literal[0, 1, 2] = 0
    """0: clean renders; 1: every clean and every dirty entry on disk; 2: dirty renders. Rendered online, `clean` and `dirty` are the scene without and with its dirt."""
    use_dirty_renders: bool = False
    """Legacy flag of the guide: the same as `render_curriculum = 2`."""
    val_ratio: InnerFraction = 0.1
    """Share of materials (or samples) held out: `max(1, round(val_ratio * n))` of them."""
    split_by: Literal["material", "sample"] = "material"
    """Unit of the train/validation split. `material`: no material stands on both sides."""
    num_workers: Annotated[int, Interval(ge=0, le=1024)] = 4
    """Loader processes per rank. 0 loads in the training process."""
    prefetch_factor: PositiveInt = 2
    """Batches that each loader process prepares ahead."""
    pin_memory: bool = True
    """Page-locked host memory for copies to a GPU. Ignored on CPU."""
    cache_mib: NonNegativeInt = 512
    """Memory in each loader process for decoded materials that several samples share (PNG files)."""
    augment_flips: bool = False
    """Show samples flipped left to right and top to bottom, in half of the cases each; normals follow."""
    augment_rotations: bool = False
    """Show samples turned by 0, 90, 180 or 270 degrees; normals follow."""
    min_confidence: Share = 0.5
    """A view whose camera has less confidence counts as missing (`model.align = plane`)."""
    views: Annotated[int, Interval(ge=1, le=3)] = 3
    """How many of a sample's views are shown, the first that there are; the others count as missing (`model.align = plane`). 1: a network of single views."""
    drop_views: Share = 0.0
    """Share of training samples that lose a view, or all but one, equally often, so that the network knows missing ones (`model.align = plane`)."""
    camera_jitter: Annotated[float, Interval(ge=0, le=0.008)] = 0.0
    """Largest shift of a training sample's views against each other, as a share of their side, so that the network bears with cameras that are a little off (`model.align = plane`). Half of the samples stay as they are."""
    builtin: bool = False
    """Train on built-in materials where no data are named, even if there is a `./data`. A run that found none sets it, so that a resume doesn't take a `./data` that came later."""
    builtin_count: Annotated[int, Interval(ge=2)] = 64
    """Number of built-in procedural samples (used when no folder is named and `./data` has none)."""
    builtin_cache: Text | None = None
    """Folder in which built-in samples are kept. None: `~/.cache/neuropbr_dist` (or `$XDG_CACHE_HOME`)."""


@dataclass(kw_only=True, slots=True)
class TransformConfig(Freezable):
    """Normalisation of the views, done on the device."""

    mean: Annotated[list[Share], Len(3, 3)] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Mean of R, G, B."""
    std: Annotated[list[PositiveFloat], Len(3, 3)] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Standard deviation of R, G, B."""
    use_imagenet_stats: bool | Literal["auto"] = "auto"
    """Take ImageNet's mean and std instead, as a pretrained ResNet expects. `auto`: where the encoder starts from its weights, unless mean or std are set; settled at the first start."""


@dataclass(kw_only=True, slots=True)
class ModelConfig(Freezable):
    """Generator (encoder, cross-view fusion, decoder) and discriminator."""

    align: Literal["auto", "plane", "none"] = "auto"
    """`plane`: views are rectified to the material's plane by their cameras, so that the network sees in every view the point that the map's pixel asks for, with a mask and the direction to the eye. `none`: views as they are. `auto`: `plane` if at least nine samples of ten keep a view; settled at the first start."""
    skip_merge: Literal["auto", "mean", "max_mean", "max_mean_var"] = "auto"
    """Features that the decoder's skips take of the three views': their mean, with their maximum, with their variance. Views count where they show the place (`align = plane`). `auto`: `mean`, or what `align = plane` measured best with."""
    token_embedding: Literal["auto", "none", "position", "view"] = "auto"
    """Embedding added to the transformer's tokens: none, one of their place (sines, Vaswani et al. 2017), or one of their view (learned). `auto`: `none`, or what `align = plane` measured best with."""
    normals: Literal["auto", "free", "slopes"] = "auto"
    """Form of the normals: `free`, three numbers made unit; `slopes`, unit(3 tanh x, 3 tanh y, 1), always out of the surface. `auto`: `free`, or what `align = plane` measured best with."""
    encoder_type: Literal["resnet", "unet"] = "resnet"
    """Encoder family, shared by the three views."""
    encoder_backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet50"
    """ResNet depth (`encoder_type = resnet`)."""
    encoder_stride: Literal[1, 2] = 1
    """Stride of the ResNet's first convolution. 1 keeps full resolution in the stem; 2 halves it and the decoder gets a 2x super-resolution head."""
    encoder_channels: Annotated[list[PositiveInt], Len(2)] = field(
        default_factory=lambda: [64, 128, 256, 512, 1024, 2048]
    )
    """Channels per level (`encoder_type = unet`); each level after the first halves the resolution."""
    encoder_pretrained: bool = True
    """Start the ResNet from ImageNet weights when they can be had (local cache or download); says so when they can't."""
    encoder_norm: Literal["auto", "group", "batch", "sync_batch", "frozen_batch"] = "auto"
    """Encoder normalisation. `auto`: `frozen_batch` with pretrained weights, else `group`."""
    norm: Literal["group", "batch", "sync_batch", "frozen_batch"] = "group"
    """Normalisation in decoder and discriminator. `group` gives the same output in train and eval mode at any micro-batch."""
    freeze_backbone: bool = False
    """Train no weight of the ResNet encoder but those of the channels that `align = plane` adds."""
    freeze_bn: bool = False
    """Train no scale or shift of the encoder's norm layers and never move their running statistics."""
    use_transformer: bool = True
    """Fuse the views with a vision transformer; False: concatenate and project."""
    transformer_dim: PositiveInt = 2048
    """Token width."""
    transformer_num_heads: PositiveInt = 32
    """Attention heads; must divide `transformer_dim`."""
    transformer_depth: PositiveInt = 4
    """Number of transformer blocks."""
    transformer_mlp_ratio: PositiveFloat = 4.0
    """Hidden width of a block's MLP over `transformer_dim`."""
    transformer_attn_drop: Fraction = 0.0
    """Dropout on attention weights. Above 0 it costs more than half the attention's speed."""
    transformer_proj_drop: Fraction = 0.0
    """Dropout after projections."""
    transformer_drop_path_rate: Fraction = 0.0
    """Stochastic depth rate of the last block; earlier blocks ramp up to it."""
    use_gan: bool = True
    """Train a discriminator and its loss."""
    discriminator_type: Literal["configurable"] = "configurable"
    """PatchGAN with a chosen number of layers."""
    discriminator_n_layers: Annotated[int, Interval(ge=1, le=8)] = 6
    """Stride-2 layers. Receptive field: 4 layers 142 px, 6 layers 574 px."""
    discriminator_ndf: PositiveInt = 64
    """Filters of the first layer."""
    discriminator_use_sigmoid: bool = False
    """End in a sigmoid (with `loss.gan_loss_type = bce` only)."""
    discriminator_norm: Literal["same", "spectral"] = "same"
    """`same`: norm layers of `model.norm`'s kind. `spectral`: none, but each convolution's weight divided by its largest singular value (Miyato et al. 2018), which bounds how fast its logits change with the maps."""
    discriminator_input: Literal["maps", "maps_and_views"] = "maps"
    """What the discriminator judges: the maps, or whether they go with what the views show of the place, their mean (`align = plane`)."""


@dataclass(kw_only=True, slots=True)
class LossConfig(Freezable):
    """Weights of the loss terms."""

    w_l1: NonNegativeFloat = 1.0
    """Per-pixel L1 over the maps."""
    w_ssim: NonNegativeFloat = 0.3
    """1 - SSIM of the albedo."""
    w_normal: NonNegativeFloat = 0.5
    """1 - cos of the angle between predicted and true normals."""
    w_render: NonNegativeFloat = 0.0
    """Maps shaded under nine lamps, predicted against true: L1 of log(radiance + 0.1) (Deschaintre et al. 2018)."""
    w_gan: NonNegativeFloat = 0.05
    """Adversarial term of the generator."""
    w_feature_matching: NonNegativeFloat = 0.0
    """What the discriminator's blocks make of predicted maps against what they make of true ones: L1, while the GAN is on (pix2pixHD, Wang et al. 2018)."""
    w_discriminator: NonNegativeFloat = 1.0
    """Weight of the discriminator's own loss."""
    w_albedo: NonNegativeFloat = 1.0
    """Weight of albedo inside the L1 term."""
    w_roughness: NonNegativeFloat = 1.0
    """Weight of roughness inside the L1 term."""
    w_metallic: NonNegativeFloat = 1.0
    """Weight of metallic inside the L1 term."""
    w_normal_map: NonNegativeFloat = 1.0
    """Weight of the normal map inside the L1 term."""
    gan_loss_type: Literal["hinge", "bce"] = "hinge"
    """Adversarial loss."""
    gan_label_smoothing: Fraction = 0.0
    """The discriminator's target for true maps is 1 less this (`bce` only): it can't grow ever surer of them."""
    custom: dict[str, NonNegativeFloat] = field(default_factory=dict)
    """Registered custom loss name to weight (`neuropbr_dist.objectives.register_loss`)."""
    custom_module: Text | None = None
    """Python file that registers custom losses; imported at start."""


@dataclass(kw_only=True, slots=True)
class OptimizerConfig(Freezable):
    """AdamW for both networks, and the learning-rate schedule."""

    g_lr: PositiveFloat = 2e-4
    """Generator's peak learning rate."""
    d_lr: PositiveFloat = 2e-4
    """Discriminator's peak learning rate."""
    g_betas: Betas = field(default_factory=lambda: [0.5, 0.999])
    """Generator's Adam betas."""
    d_betas: Betas = field(default_factory=lambda: [0.5, 0.999])
    """Discriminator's Adam betas."""
    g_weight_decay: NonNegativeFloat = 1e-4
    """Generator's decoupled weight decay."""
    d_weight_decay: NonNegativeFloat = 0.0
    """Discriminator's decoupled weight decay."""
    eps: PositiveFloat = 1e-8
    """Adam's epsilon."""
    scheduler: Literal["cosine", "step", "plateau", "none"] = "cosine"
    """Learning-rate schedule, applied per step after warm-up."""
    scheduler_warmup_epochs: NonNegativeFloat = 5
    """Epochs of linear warm-up from 0 to the peak."""
    scheduler_min_lr: NonNegativeFloat = 1e-6
    """Floor of the schedule."""
    scheduler_epochs: PositiveFloat | None = None
    """Horizon of the schedule. None: `training.epochs` at the first start, then saved with the run."""
    step_size: PositiveFloat = 30
    """Epochs between drops (`scheduler = step`)."""
    gamma: PositiveFloat = 0.1
    """Factor of a drop (`scheduler = step`)."""
    patience: NonNegativeInt = 10
    """Validations without improvement before a drop (`scheduler = plateau`)."""
    factor: PositiveFloat = 0.5
    """Factor of a drop (`scheduler = plateau`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A part of a run with a picture side and a batch of its own, from the epoch where the stage before it ended."""

    until_epoch: PositiveInt
    """Epoch, counted over the whole run, after which the stage ends; its last batch is short."""
    image_size: Side | None = None
    """Side in pixels, as `data.image_size`. None: the set's own."""
    global_batch_size: PositiveInt | None = None
    """Samples per optimizer step, as `training.global_batch_size`. None: `batch_size x world size / sample_ranks` at the first start, then saved with the run."""
    batch_size: PositiveInt = 1
    """Largest micro-batch a device takes, as `training.batch_size`."""
    lr_scale: PositiveFloat = 1.0
    """Factor on the learning rates that the run's one schedule gives."""
    sample_ranks: PositiveInt = 1
    """Ranks that share each sample, as `training.sample_ranks`."""


@dataclass(kw_only=True, slots=True)
class TrainingConfig(Freezable):
    """The loop: how long, on what, how often to look and to save."""

    epochs: PositiveInt = 100
    """Total epochs of the run, also after a resume."""
    batch_size: PositiveInt = 1
    """Largest micro-batch a device takes."""
    global_batch_size: PositiveInt | None = None
    """Samples per optimizer step over all ranks. None: `batch_size x world size / sample_ranks` at the first start, then saved with the run."""
    sample_ranks: PositiveInt = 1
    """Neighbouring ranks that share each sample, every one with a strip of its rows: a sample takes less time and memory the more they are. They must divide the ranks and `model.transformer_num_heads`, and the rows must be enough for the discriminator; results are those of one rank."""
    stages: list[Stage] = field(default_factory=list)
    """Parts of the run one after another, each with a picture side and a batch of its own (see below), in place of `data.image_size`, `training.batch_size`, `training.global_batch_size` and `training.sample_ranks`, which must not be set beside it. The last one's `until_epoch` is `training.epochs`; `--epochs` scales all edges. `[]`: the whole run is one stage."""
    seed: Annotated[int, Interval(ge=0, lt=2**63)] = 42
    """Seed of the split, the order, the initial weights and every other random choice."""
    device: Text = "auto"
    """`auto` (CUDA, then MPS, then CPU), `cuda`, `cuda:N`, `mps` or `cpu`."""
    engine: Literal["auto", "single", "ddp", "fsdp", "deepspeed"] = "auto"
    """Engine that spreads the generator over the ranks. `auto`: `deepspeed` with `--ds`, `fsdp` on several ranks, else `single`."""
    engine_discriminator: Literal["same", "single", "ddp", "fsdp", "deepspeed"] = "same"
    """Engine that spreads the discriminator over the ranks. `same`: the generator's."""
    ds_config: Text | None = None
    """DeepSpeed JSON of the generator (`--ds`): the name of one that comes with the package (`zero2`), or a path."""
    ds_config_discriminator: Text | None = None
    """DeepSpeed JSON of the discriminator (`--ds-discriminator`), named like the generator's. None: the generator's."""
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
    """torch.compile of each block; validations of 32 batches or fewer a rank run uncompiled. `auto`: on CUDA only."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Record all that a step launches once and replay it: small pictures keep the host busier than the GPU. `auto`: on one GPU, where nothing is recomputed, drawn at random or accumulated, no loss is custom, and a micro-batch has 2^21 pixels or fewer. `on`: under DDP as well, whose gradients are then averaged after the backward, not during it."""
    kernels: bool = True
    """Hand-written kernels on a GPU in half precision, and FlashAttention-4 where it is installed; false: plain PyTorch, compiled, as everywhere else."""
    grad_clip_norm: PositiveFloat | None = 1.0
    """Largest gradient norm of each network. None: no clipping."""
    ema_decay: InnerFraction | None = None
    """Keep an exponential moving average of the generator's weights, `average <- decay * average + (1 - decay) * weights` a step, and use it in validation, inference and export. None: off. 0.999 averages over about 1,000 steps, early in a run over the last third of those made."""
    gan_start_epoch: NonNegativeInt = 5
    """Epoch, counted from 1, in which the adversarial losses begin; 0 or 1: from the start."""
    d_steps_per_g_step: PositiveInt = 1
    """Discriminator updates per generator update."""
    deterministic: bool = False
    """Deterministic kernels (slower on GPU)."""
    max_skipped_steps: PositiveInt = 10
    """Non-finite losses or gradients in a row before the run stops."""
    timeout_minutes: Annotated[float, Interval(gt=0, le=525_600)] = 10
    """Limit on any one collective; a hung rank ends the run after it."""
    val_every_n_epochs: PositiveInt = 1
    """Epochs between validations."""
    checkpoint_dir: Text = "./checkpoints"
    """The run's folder: config, metrics, logs and checkpoints."""
    save_every_n_epochs: PositiveInt = 5
    """Epochs between periodic checkpoints (kept for good)."""
    save_latest_every_n_epochs: PositiveInt = 1
    """Epochs between saves of `latest`. More than 1 where an epoch is short against a save (a small set, a large model)."""
    save_every_n_steps: PositiveInt | None = None
    """Steps between saves of `latest` besides those at epoch ends. None: at epoch ends only."""
    save_every_n_minutes: PositiveFloat | None = None
    """Minutes between saves of `latest`, by rank 0's clock. None: epochs and steps alone decide."""
    save_best_only: bool = False
    """Keep `best_model` and `latest` only, no periodic checkpoints."""
    keep_latest: PositiveInt = 2
    """Number of most recent `latest` saves kept; the older one is the fall-back for a damaged newer one."""
    log_every_n_steps: PositiveInt = 10
    """Steps between log lines; the host reads the device only then."""
    log_images_every_n_epochs: PositiveInt = 5
    """Epochs between pictures in TensorBoard."""
    log_samples: bool = False
    """Write the names of each step's samples to `{checkpoint_dir}/samples.jsonl`."""
    use_tensorboard: bool = True
    """Write TensorBoard events to `{checkpoint_dir}/logs`."""
    use_wandb: bool = False
    """Log to Weights & Biases as well."""
    wandb_project: Text = "neuropbr"
    """W&B project."""
    wandb_run_name: Text | None = None
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
