"""Schema of ``configs/models/*.toml``: architecture, schedule, cache, sizes and weights of a model.

The sections name the same quantities as the Wan 2.1 configuration files, so that ``postcard`` and Wan differ by a
file and not by code.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from rtgen.config.base import Section

Size = tuple[int, int]
"""Height and width in pixels."""

Decoder = Literal["vae", "taehv"]
"""What turns latents into frames: the autoencoder's own decoder, or the tiny one trained to stand in for Wan's."""

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class TextEncoderConfig(Section):
    """A T5-style encoder (UMT5: relative position bias in every layer)."""

    vocabulary: int = Field(gt=0)
    dim: int = Field(gt=0)
    heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    ffn_dim: int = Field(gt=0)
    layers: int = Field(gt=0)
    position_buckets: int = Field(default=32, gt=0)
    max_distance: int = Field(default=128, gt=0)
    max_tokens: int = Field(gt=0)
    """Prompts are cut and padded to this many tokens."""
    runs_on: Literal["device", "host"] = "device"
    """``host``: beside the GPU, in main memory and only while a prompt is encoded, for encoders that fill a GPU."""


class DenoiserConfig(Section):
    """A causal video diffusion transformer."""

    dim: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    ffn_dim: int = Field(gt=0)
    patch: tuple[Literal[1], int, int] = (1, 2, 2)
    frequency_dim: int = Field(default=256, gt=0)
    eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def rope_split(self) -> tuple[int, int, int]:
        """Complex RoPE channels of time, height and width: 22, 21, 21 for a head of 128 (Wan 2.1)."""
        half = self.head_dim // 2
        spatial = half // 3
        return half - 2 * spatial, spatial, spatial


class CacheConfig(Section):
    """The K/V ring, in latent frames. Window counts the sink and the chunk being generated."""

    chunk: int = Field(default=3, gt=0)
    window: int = Field(gt=0)
    sink: int = Field(default=0, ge=0)
    position_limit: int = Field(default=1024, gt=0)
    """Latent frames that the positions in time reach (Wan's rotary table); longer streams count them anew."""
    keep: float | None = Field(default=None, gt=0, le=1)
    """Where the ring holds codes: the share of its frames that a pass sees whole, instead of the recipe's."""

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        if self.window % self.chunk or self.sink % self.chunk:
            raise ValueError(f"window {self.window} and sink {self.sink} must be multiples of chunk {self.chunk}")
        if self.window < self.sink + 2 * self.chunk and self.sink:
            raise ValueError("the window must hold the sink, one past chunk and the chunk being generated")
        if self.window > self.position_limit:
            raise ValueError(f"window {self.window} reaches past position_limit {self.position_limit}")
        return self


class AutoencoderConfig(Section):
    """A causal convolutional autoencoder in the form of the Wan VAE."""

    latent_channels: int = Field(default=16, gt=0)
    base_channels: int = Field(gt=0)
    decoder_base_channels: int | None = Field(default=None, gt=0)
    """Where the decoder's width differs from the encoder's (Wan 2.2's ``dec_dim``)."""
    multipliers: tuple[int, ...] = Field(min_length=2)
    residual_blocks: int = Field(gt=0)
    temporal_downsample: tuple[bool, ...]
    """Whether each of the ``len(multipliers) - 1`` down-samplings also halves time."""
    single_first_frame: bool = False
    """Whether the first latent frame of a stream stands for one pixel frame (Wan) instead of a full group."""
    pixel_patch: int = Field(default=1, gt=0)
    """Pixels are folded into channels by this factor first (Wan 2.2); 1 for Wan 2.1."""
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.temporal_downsample) != len(self.multipliers) - 1:
            raise ValueError("temporal_downsample needs one entry less than multipliers")
        if not len(self.latent_mean) == len(self.latent_std) == self.latent_channels:
            raise ValueError(f"latent_mean and latent_std need {self.latent_channels} entries")
        return self

    @property
    def spatial_stride(self) -> int:
        return self.pixel_patch << (len(self.multipliers) - 1)

    @property
    def temporal_stride(self) -> int:
        return 1 << sum(self.temporal_downsample)


class ScheduleConfig(Section):
    """The few-step sampler: rectified-flow timesteps before warping, and how a step leads to the next."""

    timesteps: tuple[float, ...] = Field(min_length=1)
    """Out of 1000, descending; each is warped by ``shift``: sigma' = shift * sigma / (1 + (shift - 1) * sigma)."""
    shift: float = Field(default=1.0, gt=0)
    sampler: Literal["renoise", "euler"]
    """``renoise``: fresh noise at each step (Self-Forcing). ``euler``: the estimated noise is kept (an ODE solver)."""


class ResolutionProfile(Section):
    """Sizes in pixels that one optimization profile of an engine serves."""

    min: Size
    opt: Size
    max: Size

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if any(not low <= best <= high for low, best, high in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError(f"a profile needs min <= opt <= max, got {self.min}, {self.opt}, {self.max}")
        return self


class ResolutionConfig(Section):
    """Frame sizes of a model."""

    default: Size
    profiles: tuple[ResolutionProfile, ...] = Field(min_length=1)


class WeightsConfig(Section):
    """Where the weights are. Files are named relative to ``directory``."""

    directory: str
    """``bundled`` for those inside the rtgen package, a folder, or empty for ``models/NAME`` in the user's data folder;
    ``--weights`` names another."""
    published: Literal["self-forcing", "longlive", "wan"] | None = None
    """Whose published files they are (``rtgen.models.checkpoints.layouts``); they are converted before use."""
    text_encoder: tuple[FileName, ...] = ()
    denoiser: tuple[FileName, ...] = ()
    decoder: tuple[FileName, ...] = ()
    """Safetensors files of each component, in parts where one would be too large; none are named for published ones."""
    tokenizer: FileName = "tokenizer.json"
    licence: str

    @model_validator(mode="after")
    def _named_or_published(self) -> Self:
        named = [bool(files) for files in (self.text_encoder, self.denoiser, self.decoder)]
        if any(named) if self.published else not all(named):
            raise ValueError("name the files of text_encoder, denoiser and decoder, or say whose are published")
        return self


class CalibrationConfig(Section):
    """The streams that quantization is calibrated on."""

    prompts: str = Field(default="general", pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """A file of ``configs/calibration``, one prompt a line; each is a stream. ``--calib-prompts`` names another."""
    chunks: tuple[int, ...] = Field(default=(0, 1, 4), min_length=1)
    """Chunks of a stream whose passes are recorded: early ones, and late ones that see a ring which turned over."""
    size: Size | None = None
    """Frame size of the streams; the model's default size unless given."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if any(chunk < 0 for chunk in self.chunks) or list(self.chunks) != sorted(set(self.chunks)):
            raise ValueError("chunks must ascend from 0")
        return self


class EvaluationConfig(Section):
    """What tells whether clips show what their prompts ask for: files beside the weights, which need not be there."""

    classifier: FileName
    """An ONNX file that takes clips uint8 [B, frames, 3, H, W] and returns class indices int64 [B, attributes]."""
    prompts: FileName
    """JSON: prompts that training never saw, with the value of each attribute (``rtgen.fidelity.attributes``)."""


class ModelConfig(Section):
    """A model that rtgen can compile."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    frames_per_second: int = Field(gt=0)
    decoder: Decoder = "vae"
    """The decoder to build with unless another of ``decoders`` is asked for."""
    decode_frames: int | None = Field(default=None, gt=0)
    """Latent frames that one run of the decoder takes, a divisor of the chunk: less memory, more runs. By default the
    whole chunk."""
    example_prompts: tuple[str, ...] = Field(min_length=1)
    text_encoder: TextEncoderConfig
    denoiser: DenoiserConfig
    cache: CacheConfig
    autoencoder: AutoencoderConfig
    schedule: ScheduleConfig
    resolution: ResolutionConfig
    weights: WeightsConfig
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig | None = None

    @model_validator(mode="after")
    def _strides_of_the_tiny_decoder(self) -> Self:
        if self.decoder == "taehv" and not self._has_wan_strides:
            strides = (self.autoencoder.temporal_stride, self.autoencoder.spatial_stride)
            raise ValueError(f"decoder 'taehv' makes 4 frames of 8x8 pixels, the autoencoder has strides {strides}")
        return self

    @model_validator(mode="after")
    def _whole_runs_of_the_decoder(self) -> Self:
        if self.cache.chunk % self.decoded_at_once:
            raise ValueError(f"decode_frames {self.decode_frames} must divide chunk {self.cache.chunk}")
        return self

    @property
    def decoded_at_once(self) -> int:
        """Latent frames that one run of the decoder takes."""
        return self.decode_frames or self.cache.chunk

    @property
    def decoders(self) -> tuple[Decoder, ...]:
        """The decoders that there are weights of, the config's own first: of published models, both that fit."""
        if self.weights.published is None or not self._has_wan_strides:
            return (self.decoder,)
        return ("vae", "taehv") if self.decoder == "vae" else ("taehv", "vae")

    @property
    def _has_wan_strides(self) -> bool:
        return (self.autoencoder.temporal_stride, self.autoencoder.spatial_stride) == (4, 8)

    @property
    def dropped_frames(self) -> int:
        """Frames at the start of a stream that do not exist: its first latent frame stands for one of its group."""
        single = self.decoder == "taehv" or self.autoencoder.single_first_frame
        return self.autoencoder.temporal_stride - 1 if single else 0

    @property
    def size_step(self) -> Size:
        """Frame heights and widths are multiples of these many pixels (one token)."""
        stride = self.autoencoder.spatial_stride
        return stride * self.denoiser.patch[1], stride * self.denoiser.patch[2]
