"""Distil the denoiser into one for few steps, on streams that the student itself makes.

    python -m scripts.postcard.distill --autoencoder runs/autoencoder --teacher runs/denoiser --out runs/student

The student extends many streams chunk by chunk with the few-step sampler, through its own K/V window (self-rollout, as
Self-Forcing, arXiv 2506.08009, trains). From the same noise and the same past, the teacher solves its flow in many
small steps with classifier-free guidance. At every step that the student took, from where it had got to, it learns to
point at the teacher's result. So one pass does the work of several, guidance costs nothing at inference, and both learn
nothing about pasts that never occur. A batch of the teacher's own objective on rendered clips keeps the clean pass
honest.
"""

from __future__ import annotations

import argparse
import copy
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from rtgen.config.model import ModelConfig
from rtgen.models.dit import CausalVideoDiT
from rtgen.runtime.schedule import sigmas
from scripts.postcard.data import OMITTED
from scripts.postcard.distributed import Group, join
from scripts.postcard.grammar import caption, random_scene
from scripts.postcard.streams import StreamAttention, chunk_rotation, even_levels
from scripts.postcard.tokens import build_tokenizer, encode
from scripts.postcard.train_denoiser import Generator, flow_loss, make_generator, make_pool, save_all
from scripts.postcard.training import (
    AveragedWeights,
    Clock,
    Log,
    learning_rate_factor,
    load_weights,
    optimizers,
    postcard_config,
    set_rate,
)

LONGEST = 42
"""Chunks of a stream before new captions begin: a little over 30 seconds."""
SWITCHED = 0.04
"""Chance that a fleet gets new captions before a chunk, as when prompts are switched in mid-stream."""
REAL_WEIGHT = 0.5
"""Of the teacher's own objective on rendered clips."""


@dataclass
class Fleet:
    """Streams of one age with the K/V windows of student and teacher."""

    context: Tensor
    """Encoded captions, then as many empty ones: [2 * B, L, dim]."""
    length: int
    age: int = 0
    student: StreamAttention = field(default_factory=StreamAttention)
    teacher: StreamAttention = field(default_factory=StreamAttention)
    made: list[Tensor] = field(default_factory=list)
    """The latents of the chunks in the windows, oldest first."""


class Distillation:
    """Student, teacher, and one chunk of work on one fleet."""

    def __init__(self, config: ModelConfig, model: Generator, arguments: argparse.Namespace, group: Group) -> None:
        self.config, self.model, self.group = config, model, group
        self.teacher = copy.deepcopy(model.denoiser).eval().requires_grad_(False)
        self.levels = sigmas(config.schedule.timesteps, config.schedule.shift)
        self.teacher_levels = even_levels(arguments.teacher_steps, config.schedule.shift)
        self.guidance, self.streams = arguments.guidance, arguments.streams
        self.rng = random.Random(arguments.seed + 1009 * group.rank)
        self.tokenizer: Tokenizer = build_tokenizer()
        stride = config.autoencoder.spatial_stride
        self.height, self.width = (pixels // stride for pixels in config.resolution.default)
        self.fleets = [self._new_fleet() for _ in range(arguments.fleets)]

    @torch.no_grad()
    def _captions(self) -> Tensor:
        """New captions, encoded, then as many empty ones: [2 * B, L, dim]."""
        texts = [caption(random_scene(self.rng), self.rng, omit=OMITTED) for _ in range(self.streams)]
        ids, mask = encode(
            self.tokenizer, [*texts, *("" for _ in texts)], self.config.text_encoder.max_tokens, self.group.device
        )
        return self.model.text_encoder(ids, mask)

    def _new_fleet(self) -> Fleet:
        return Fleet(self._captions(), self.rng.randint(4, LONGEST))

    def _switch(self, fleet: Fleet) -> None:
        """Give a fleet other captions and encode its windows again under them, as the runtime does."""
        fleet.context = self._captions()
        fleet.student, fleet.teacher = StreamAttention(), StreamAttention()
        chunks, fleet.made = fleet.made, []
        for place, made in enumerate(chunks):
            self._commit(fleet, made, self._rotation(fleet.age - len(chunks) + place))

    def _rotation(self, chunk: int) -> Tensor:
        return chunk_rotation(self.config, chunk, self.height // 2, self.width // 2, self.group.device)

    def loss(self, turn: int) -> Tensor:
        """Extend one fleet by a chunk; the error of the student's estimates against the teacher's result."""
        place = turn % len(self.fleets)
        if self.fleets[place].age >= self.fleets[place].length:
            self.fleets[place] = self._new_fleet()
        fleet = self.fleets[place]
        if fleet.age and self.rng.random() < SWITCHED:
            self._switch(fleet)
        rotation = self._rotation(fleet.age)
        shape = (
            self.streams,
            self.config.autoencoder.latent_channels,
            self.config.cache.chunk,
            self.height,
            self.width,
        )
        noise = torch.randn(shape, device=self.group.device)
        states, made = self._student_rollout(fleet, noise, rotation)
        target = self._teacher_solution(fleet, noise, rotation)
        loss = self._regression(fleet, states, target, rotation)
        self._commit(fleet, made, rotation)
        fleet.age += 1
        return loss

    def _run(self, denoiser: CausalVideoDiT, latents: Tensor, sigma: float, context: Tensor, rotation: Tensor,
             attend: StreamAttention) -> Tensor:  # fmt: skip
        timestep = torch.full((len(latents), latents.shape[2]), 1000 * sigma, device=latents.device)
        return denoiser(latents, timestep, context, rotation, attend)

    @torch.no_grad()
    def _student_rollout(self, fleet: Fleet, noise: Tensor, rotation: Tensor) -> tuple[list[Tensor], Tensor]:
        """The latents at each level that the student came by, and what it made."""
        context, states, latents = fleet.context[: self.streams], [], noise
        made = noise
        for sigma, following in zip(self.levels, (*self.levels[1:], 0.0), strict=True):
            states.append(latents)
            velocity = self._run(self.model.denoiser, latents, sigma, context, rotation, fleet.student)
            made = latents - sigma * velocity
            latents = latents + (following - sigma) * velocity
        return states, made

    @torch.no_grad()
    def _teacher_solution(self, fleet: Fleet, noise: Tensor, rotation: Tensor) -> Tensor:
        latents = noise
        for sigma, following in zip(self.teacher_levels, (*self.teacher_levels[1:], 0.0), strict=True):
            both = self._run(self.teacher, latents.repeat(2, 1, 1, 1, 1), sigma, fleet.context, rotation, fleet.teacher)
            conditional, unconditional = both.chunk(2)
            velocity = torch.lerp(unconditional, conditional, self.guidance)
            latents = latents + (following - sigma) * velocity
        return latents

    def _regression(self, fleet: Fleet, states: list[Tensor], target: Tensor, rotation: Tensor) -> Tensor:
        """Squared error of the velocities that lead from each state straight to ``target``."""
        losses = []
        context = fleet.context[: self.streams]
        for latents, sigma in zip(states, self.levels, strict=True):
            velocity = self._run(self.model.denoiser, latents, sigma, context, rotation, fleet.student)
            losses.append((velocity - (latents - target) / sigma).square().mean())
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _commit(self, fleet: Fleet, made: Tensor, rotation: Tensor) -> None:
        """The clean pass of both, over what the student made."""
        keep = self.config.cache.window // self.config.cache.chunk - 1
        self._run(self.model.denoiser, made, 0.0, fleet.context[: self.streams], rotation, fleet.student)
        fleet.student.commit(keep)
        self._run(self.teacher, made.repeat(2, 1, 1, 1, 1), 0.0, fleet.context, rotation, fleet.teacher)
        fleet.teacher.commit(keep)
        fleet.made = [*fleet.made, made][-keep:]


def train(arguments: argparse.Namespace, group: Group) -> None:
    torch.set_float32_matmul_precision("high")
    device, config = group.device, postcard_config()
    model = make_generator(config, device)
    parts = {"denoiser": model.denoiser, "text_encoder": model.text_encoder}
    for name, part in parts.items():
        part.load_state_dict(load_weights(arguments.teacher, name))
    torch.manual_seed(arguments.seed + 1009 * group.rank)
    work = Distillation(config, model, arguments, group)
    if arguments.resume:
        model.denoiser.load_state_dict(load_weights(arguments.resume, "denoiser"))
    # The student and its teacher read one prompt encoding.
    model.text_encoder.requires_grad_(False)
    pool = make_pool(config, arguments.autoencoder, arguments.pool, arguments.seed + 500 + 1009 * group.rank, device)
    averaged = AveragedWeights(parts, decay=0.998)
    found = optimizers([model.denoiser], rate=arguments.rate, weight_decay=0.0)
    clock, log = Clock(arguments.minutes), Log(arguments.out / "log.jsonl")
    step, saved, fraction, totals = 0, 0.0, 0.0, torch.zeros(2, device=device)
    while fraction < 1:
        if step % 10 == 0:
            fraction = group.agree(clock.fraction)
        set_rate(found, arguments.rate * learning_rate_factor(step, fraction, warmup_steps=20, decay_from=0.3))
        if step % 32 == 0:
            pool.refresh()
        with torch.autocast(device.type, torch.bfloat16):
            loss = work.loss(step)
            real = flow_loss(model, pool.draw(arguments.real_batch), config, resample=False)
        for optimizer in found:
            optimizer.zero_grad(set_to_none=True)
        (loss + REAL_WEIGHT * real).backward()
        group.average(model.denoiser.parameters())
        torch.nn.utils.clip_grad_norm_(model.denoiser.parameters(), 1.0)
        for optimizer in found:
            optimizer.step()
        averaged.update(step)
        totals += torch.stack([loss.detach(), real.detach()])
        step += 1
        if group.is_first and step % 50 == 0:
            distilled, kept = (totals / 50).tolist()
            log.write(step=step, seconds=clock.elapsed, distillation=distilled, real=kept)
            totals.zero_()
        if group.is_first and clock.elapsed - saved > 45:
            saved = clock.elapsed
            save_all(arguments.out, averaged)
    if group.is_first:
        save_all(arguments.out, averaged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of the trained autoencoder")
    parser.add_argument("--teacher", type=Path, required=True, help="folder that train_denoiser wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="folder of a student to continue from")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--streams", type=int, default=128, help="streams of a fleet and GPU")
    parser.add_argument("--fleets", type=int, default=8, help="fleets of different ages")
    parser.add_argument("--teacher-steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=1.5, help="scale of the teacher's guidance; 1 is none")
    parser.add_argument("--real-batch", type=int, default=16, help="rendered clips a step and GPU")
    parser.add_argument("--pool", type=int, default=512, help="rendered clips kept on the device")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args(), join())


if __name__ == "__main__":
    main()
