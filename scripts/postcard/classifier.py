"""Train a classifier that reads the seven attributes of a postcard clip, so that generated clips can be judged.

    python -m scripts.postcard.classifier --out runs/classifier --minutes 10

It sees a clip as pairs of frames a few frames apart, spread over five seconds: the pairs show which way things move,
their spread shows the path. Trained on endless renders of the training split, worn the way generated video is: soft,
noisy, uneven in brightness, coarse like a compressed picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.postcard.data import RENDERED_AT_ONCE, ClipSource, Item, Pool
from scripts.postcard.grammar import ATTRIBUTES, Scene, held_out_scenes
from scripts.postcard.render import render, subject_paths
from scripts.postcard.training import (
    AveragedWeights,
    Clock,
    Log,
    learning_rate_factor,
    load_weights,
    save_weights,
    set_rate,
)

CLIP_FRAMES = 80
"""Frames of a clip: five seconds."""
PIXELS = 128
"""Height and width at which a clip is read."""
PAIRS = 8
GAP = 3
"""Frames between the two of a pair. Slower things move less than a pixel, faster ones half a subject's width."""
JITTERS = (-2, 0, 2)
"""The first frames of the pairs are moved by these, and the answers averaged."""
_RENDERED_AT = (128, 128)
_RENDERED_AT_ONCE = 16


class Residual(nn.Module):
    """Two normalised convolutions around a skip; halves the picture if ``stride`` is 2."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, outputs)
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(channels, outputs, 1) if channels != outputs else nn.Identity()
        self.stride = stride
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.skip(F.avg_pool2d(x, self.stride) if self.stride > 1 else x) + y


class Mix(nn.Module):
    """A residual 1-D convolution over the pairs of a clip [B, C, V]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.conv1 = nn.Conv1d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(self.norm(x))))


class Classifier(nn.Module):
    """One backbone, a head per attribute."""

    def __init__(self, width: int = 48, gazes: int = 8, dim: int = 256) -> None:
        super().__init__()
        channels = 4 * width
        self.stem = nn.Conv2d(6, width, 5, stride=2, padding=2)
        self.speed = nn.Conv2d(4, width, 1)
        self.blocks = nn.Sequential(
            Residual(width, 2 * width, 2),
            Residual(2 * width, 2 * width, 1),
            Residual(2 * width, channels, 2),
            Residual(channels, channels, 1),
        )
        self.norm = nn.GroupNorm(8, channels)
        self.gaze = nn.Conv2d(channels, gazes, 1)
        self.token = nn.Linear((gazes + 1) * channels + 2 * gazes, dim)
        self.place_in_time = nn.Parameter(torch.zeros(dim, PAIRS))
        self.mixes = nn.Sequential(Mix(dim), Mix(dim), Mix(dim))
        self.heads = nn.ModuleList(nn.Linear(dim, len(values)) for values in ATTRIBUTES.values())

    def look(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 256] of `sample_pairs`, and logits [B, V, h, w] of where the first gaze rests."""
        clips, views = pairs.shape[:2]
        pictures = (2 * pairs - 1).flatten(2, 3).flatten(0, 1)
        maps = self.blocks(self.stem(pictures) + self.speed(speeds(pictures)))
        tokens, gaze = self._rest(F.silu(self.norm(maps)))
        mixed = F.silu(self.mixes(tokens.unflatten(0, (clips, views)).transpose(1, 2) + self.place_in_time))
        return mixed.mean(2).float(), gaze[:, 0].unflatten(0, (clips, views)).float()

    def features(self, pairs: Tensor) -> Tensor:
        """One vector [B, 256] a clip, before the heads."""
        return self.look(pairs)[0]

    def answers(self, features: Tensor) -> list[Tensor]:
        """Logits [B, values] of each attribute."""
        return [head(features) for head in self.heads]

    def forward(self, pairs: Tensor) -> list[Tensor]:
        """Logits [B, values] of each attribute."""
        return self.answers(self.features(pairs))

    @torch.no_grad()
    def read(self, video: Tensor) -> Tensor:
        """Class indices int64 [B, 7] of clips uint8 [B, 80, 3, H, W]."""
        video = video.to(self.place_in_time.device)
        rounds = [
            [logits.softmax(1) for logits in self(sample_pairs(video, pair_starts(jitter), GAP))] for jitter in JITTERS
        ]
        return torch.stack([torch.stack(chances).sum(0).argmax(1) for chances in zip(*rounds, strict=True)], dim=1)

    def _rest(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, dim] of feature maps [N, C, h, w] (what is where each gaze rests, where that is, and the mean).

        Also the logits [N, gazes, h, w] of where the gazes rest.
        """
        gaze = self.gaze(maps)
        weights = gaze.flatten(2).softmax(2)
        rows, columns = maps.shape[2:]
        where = weights.float() @ (2 * _cells(rows, columns, maps.device).flatten(0, 1) - 1)
        what = weights.to(maps.dtype) @ maps.flatten(2).transpose(1, 2)
        return self.token(torch.cat([what.flatten(1), maps.mean((2, 3)), where.flatten(1).to(what.dtype)], dim=1)), gaze


def _cells(rows: int, columns: int, device: torch.device) -> Tensor:
    """Centres (x, y) [rows, columns, 2] of the cells of a picture, as fractions of its width and height."""
    y = (torch.arange(rows, device=device) + 0.5) / rows
    x = (torch.arange(columns, device=device) + 0.5) / columns
    return torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], dim=2)


def speeds(pictures: Tensor) -> Tensor:
    """How fast things move across and down in pairs [N, 6, H, W]: [N, 4, H / 2, W / 2], from two scales.

    The ratio of change to slope around each pixel (after Lucas and Kanade, 1981, the two axes apart), in pixels of
    its scale a pair. A network finds this product of inputs late by itself.
    """
    found = []
    for scale in (2, 4):
        before, after = F.avg_pool2d(pictures, scale).chunk(2, dim=1)
        padded, change = F.pad((before + after) / 2, (1, 1, 1, 1), "replicate"), after - before
        across = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
        down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
        for slope in (across, down):
            agreement = F.avg_pool2d((slope * change).mean(1, keepdim=True), 5, stride=1, padding=2)
            strength = F.avg_pool2d(slope.square().mean(1, keepdim=True), 5, stride=1, padding=2)
            found.append(F.interpolate((-agreement / (strength + 1e-3)).clamp(-3, 3), scale_factor=scale / 2))
    return torch.cat(found, dim=1)


def gaze_loss(gaze: Tensor, where: Tensor) -> Tensor:
    """Cross-entropy of logits [B, V, h, w] and the cells around the subject's centre (x, y) [B, V, 2], fractions.

    Knowing where the subject is, the network learns what it is in a fraction of the time. Off the picture counts not.
    """
    rows, columns = gaze.shape[2:]
    size = torch.tensor([columns, rows], device=gaze.device)
    offset = (_cells(rows, columns, gaze.device) - where[:, :, None, None]) * size
    target = torch.exp(-offset.square().sum(-1)).flatten(2)
    visible = ((where > 0) & (where < 1)).all(-1)
    losses = F.cross_entropy(
        gaze.flatten(2).flatten(0, 1), F.normalize(target, p=1, dim=2).flatten(0, 1), reduction="none"
    )
    return (losses * visible.flatten()).mean()


def pair_starts(jitter: int = 0) -> Tensor:
    """First frames int64 [PAIRS] of evenly spread pairs, moved by ``jitter`` frames where the clip has room."""
    last = CLIP_FRAMES - 1 - GAP
    return (torch.linspace(0, last, PAIRS).round().long() + jitter).clamp(0, last)


def sample_pairs(video: Tensor, starts: Tensor, gap: int | Tensor) -> Tensor:
    """Pairs of frames [B, PAIRS, 2, 3, PIXELS, PIXELS] float32 in 0..1 of clips uint8 [B, T, 3, H, W].

    `starts` int64 [PAIRS] or [B, PAIRS]; `gap` frames, one or [B, 1]. Raises ValueError for a clip that is too short.
    """
    if video.shape[1] < CLIP_FRAMES:
        raise ValueError(f"a clip has {CLIP_FRAMES} frames, not {video.shape[1]}")
    starts = starts.to(video.device).expand(len(video), PAIRS)
    frames = torch.stack([starts, starts + gap], dim=2).flatten(1)
    chosen = video[torch.arange(len(video), device=video.device)[:, None], frames].flatten(0, 1).float() / 255
    small = chosen if chosen.shape[-2:] == (PIXELS, PIXELS) else F.interpolate(chosen, (PIXELS, PIXELS), mode="area")
    return small.reshape(len(video), PAIRS, 2, 3, PIXELS, PIXELS)


def mirror(pairs: Tensor, labels: Tensor, where: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clips, labels and subjects' places with those of `chosen` bool [B] mirrored: what went left goes right."""
    values = list(ATTRIBUTES.items())
    flipped = labels.clone()
    for column, (name, names) in enumerate(values):
        if name in ("motion", "camera"):
            other = [names.index(_opposite(value)) for value in names]
            flipped[:, column] = torch.tensor(other, device=labels.device)[labels[:, column]]
    seen = torch.where(chosen[:, None, None, None, None, None], pairs.flip(-1), pairs)
    moved = torch.stack([1 - where[..., 0], where[..., 1]], dim=-1)
    return seen, torch.where(chosen[:, None], flipped, labels), torch.where(chosen[:, None, None], moved, where)


def _opposite(value: str) -> str:
    head, _, side = value.rpartition(" ")
    sides = {"left": "right", "right": "left"}
    return f"{head} {sides[side]}" if side in sides else value


def wear(pairs: Tensor) -> Tensor:
    """Pairs [B, V, 2, 3, H, W] worn as generated video is, each clip to a random degree."""
    clips, device = len(pairs), pairs.device

    def amount(most: float, *, per_frame: bool = False) -> Tensor:
        """Mostly small amounts, up to `most`, for each clip or each of its frames."""
        shape = (clips, PAIRS, 2, 1, 1, 1) if per_frame else (clips, 1, 1, 1, 1, 1)
        return most * torch.rand(shape, device=device).square()

    for axis in (-1, -2):
        soft = amount(0.3)
        pairs = pairs * (1 - 2 * soft) + (pairs.roll(1, axis) + pairs.roll(-1, axis)) * soft
    sign = torch.rand(clips, PAIRS, 2, 1, 1, 1, device=device) - 0.5
    pairs = pairs * (1 + amount(0.1) * sign) + amount(0.1) * (torch.rand(clips, 1, 1, 3, 1, 1, device=device) - 0.5)
    pairs = coarsen(pairs, amount(0.08))
    return (pairs + amount(0.06) * torch.randn_like(pairs)).clamp(0, 1)


def coarsen(pairs: Tensor, step: Tensor) -> Tensor:
    """The pictures [..., H, W] with the cosine coefficients of 8x8 blocks rounded to multiples of `step`, as JPEG does.

    Higher frequencies are rounded more coarsely; `step` broadcasts over the pictures.
    """
    order = torch.arange(8, device=pairs.device, dtype=pairs.dtype)
    basis = (
        torch.cos((2 * order + 1) * order[:, None] * torch.pi / 16)
        * torch.where(order == 0, 0.125, 0.25).sqrt()[:, None]
    )
    blocks = pairs.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
    steps = step[..., None, None].clamp_min(1e-4) * (1 + order + order[:, None])
    coefficients = (basis @ blocks @ basis.T / steps).round() * steps
    return (basis.T @ coefficients @ basis).transpose(-3, -2).flatten(-4, -3).flatten(-2)


def labelled_clips(source: ClipSource) -> Callable[[int], Item]:
    """A maker of clips uint8 [batch, 80, 3, PIXELS, PIXELS], their class indices, subjects' places [batch, 80, 2]."""
    height, width = source.size

    def make(index: int) -> Item:
        indices, _, seed, start = source.scenes(index)
        x, y, _ = subject_paths(indices, CLIP_FRAMES, height, width, seed, start)
        where = torch.stack([x * height / width, y], dim=2).to(source.device, torch.float32)
        pixels = shrink(source.render(indices, seed, start))
        return {"pixels": pixels, "labels": indices.to(source.device), "where": where}

    return make


def shrink(video: Tensor) -> Tensor:
    """uint8 [B, T, 3, H, W] at PIXELS by PIXELS."""
    parts = [F.interpolate(clip.float(), (PIXELS, PIXELS), mode="area").round().to(torch.uint8) for clip in video]
    return torch.stack(parts)


def training_batch(item: Item) -> tuple[Tensor, Tensor, Tensor]:
    """Worn pairs, labels and subjects' places [B, V, 2] of a pool's items, at random times and 2 to 4 frames apart."""
    video, labels, where = item["pixels"], item["labels"], item["where"]
    device, count = video.device, len(video)
    gap = torch.randint(2, 5, (count, 1), device=device)
    starts = pair_starts().to(device) + torch.randint(-4, 5, (count, PAIRS), device=device)
    starts = torch.minimum(starts.clamp_min(0), CLIP_FRAMES - 1 - gap)
    clip = torch.arange(count, device=device)[:, None]
    between = (where[clip, starts] + where[clip, starts + gap]) / 2
    chosen = torch.rand(count, device=device) < 0.5
    pairs, labels, between = mirror(sample_pairs(video, starts, gap), labels, between, chosen)
    return wear(pairs), labels, between


def accuracies(answers: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of right answers [B, 7] of each attribute."""
    truth = torch.tensor([scene.indices() for scene in scenes])
    right = (answers.cpu() == truth).double().mean(0).tolist()
    return dict(zip(ATTRIBUTES, right, strict=True))


def read_renders(model: Classifier, scenes: Sequence[Scene], seed: int, device: torch.device) -> Tensor:
    """What the classifier reads [B, 7] in fresh renders of scenes."""
    answers = []
    for first in range(0, len(scenes), _RENDERED_AT_ONCE):
        some = scenes[first : first + _RENDERED_AT_ONCE]
        answers.append(model.read(render(some, frames=CLIP_FRAMES, seed=seed + first, device=device, start_time=7.0)))
    return torch.cat(answers)


def train(
    out: Path,
    minutes: float,
    *,
    batch: int = 64,
    seed: int = 0,
    pool: int = 1024,
    held_out: int = 256,
    resume: Path | None = None,
) -> None:
    """Train for `minutes`, then write weights and the accuracy on `held_out` renders of the test split."""
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    clock, log = Clock(minutes), Log(out / "log.jsonl")
    model = Classifier()
    if resume:
        model.load_state_dict(load_weights(resume, "classifier"))
    model.to(device)
    averaged = AveragedWeights({"classifier": model}, decay=0.995)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.02)
    source = ClipSource(min(pool, RENDERED_AT_ONCE), CLIP_FRAMES, _RENDERED_AT, seed + 77, device)
    clips = Pool(pool, labelled_clips(source), source.batch, first=min(pool, 256))
    # Processors without bfloat16 instructions are slower with it.
    quick = device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    step, saved, right = 0, 0.0, torch.zeros(len(ATTRIBUTES), device=device)
    while not clock.over:
        if step % 32 == 0:
            clips.refresh()
        pairs, labels, where = training_batch(clips.draw(batch))
        set_rate([optimizer], 2e-3 * learning_rate_factor(step, clock.fraction, warmup_steps=50, decay_from=0.4))
        with torch.autocast(device.type, torch.bfloat16, enabled=quick):
            features, gaze = model.look(pairs)
        logits = model.answers(features)
        loss = torch.stack([F.cross_entropy(part, labels[:, i]) for i, part in enumerate(logits)]).sum()
        loss = loss + gaze_loss(gaze, where)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        averaged.update(step)
        step += 1
        with torch.no_grad():
            right.lerp_(torch.stack([(p.argmax(1) == labels[:, i]).float().mean() for i, p in enumerate(logits)]), 0.05)
        if clock.elapsed - saved > 60:
            saved = clock.elapsed
            save_weights(out, "classifier", averaged.part("classifier"))
        if step % 50 == 0:
            shares = dict(zip(ATTRIBUTES, right.tolist(), strict=True))
            log.write(step=step, seconds=clock.elapsed, clips=clips.made * source.batch, loss=loss.item(), **shares)
    save_weights(out, "classifier", averaged.part("classifier"))
    scenes = held_out_scenes(held_out, seed=seed + 11)
    reached = accuracies(read_renders(load_classifier(out, device), scenes, seed + 12, device), scenes)
    log.write(step=step, seconds=clock.elapsed, held_out_clips=held_out, mean=sum(reached.values()) / 7, **reached)


def load_classifier(folder: Path, device: torch.device) -> Classifier:
    """What `train` saved, ready to read clips. Raises FileNotFoundError."""
    model = Classifier()
    model.load_state_dict(load_weights(folder, "classifier"))
    return model.to(device).eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--batch", type=int, default=64, help="clips a step")
    parser.add_argument("--pool", type=int, default=1024, help="rendered clips to draw from, 4 megabytes each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="folder of saved weights to continue from")
    arguments = parser.parse_args()
    train(
        arguments.out,
        arguments.minutes,
        batch=arguments.batch,
        seed=arguments.seed,
        pool=arguments.pool,
        resume=arguments.resume,
    )


if __name__ == "__main__":
    main()
