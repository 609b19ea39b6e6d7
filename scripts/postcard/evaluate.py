"""Judge the trained torch models on prompts that training never saw: one command, a few minutes on one GPU.

    python -m scripts.postcard.evaluate --student runs/student --teacher runs/denoiser \\
        --autoencoder runs/decoder --guidance 2 --out runs/evaluation

Every held-out scene is streamed for 30 seconds by the few-step student, by its many-step teacher, and by the teacher
in as few steps as the student. `scripts.postcard.classifier` reads the attributes of the first and the last five
seconds, and those of fresh renders of the same scenes. Then prompts are switched in mid-stream, and passes are saved
where a chunk changes little. The weights that rtgen ships do as well (`--autoencoder` and `--student`
rtgen/bundled/postcard), and a small `--count` does on a processor. Writes report.json; `scripts.postcard.results`
makes a page of it, `scripts.postcard.evaluate_package` judges a built package.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtgen.config.model import ModelConfig
from rtgen.runtime.cpu import thread_count
from scripts.postcard.budgets import WithinBudget, peak_signal_to_noise
from scripts.postcard.classifier import CLIP_FRAMES, Classifier, load_classifier
from scripts.postcard.frechet import frechet_distance
from scripts.postcard.grammar import canonical_caption, held_out_scenes
from scripts.postcard.judging import Reading, accuracy, misread, read_clips
from scripts.postcard.prompt_switch import measure_switch
from scripts.postcard.recording import Recording, join, record
from scripts.postcard.render import FRAME_RATE, render
from scripts.postcard.results import describe
from scripts.postcard.rollout import (
    BatchStream,
    Parts,
    Plan,
    Sampling,
    even_sampling,
    load_parts,
    shipped_sampling,
)
from scripts.postcard.targets import Report, check_targets
from scripts.postcard.training import KEPT, postcard_config

SCHEMA = "postcard.evaluation/2"
PARTS = ("switch", "adaptive", "undistilled")
"""What can be left out."""
WINDOWS = ("early", "late")
"""The first and the last five seconds of a stream."""


@dataclass(frozen=True)
class Settings:
    """What is measured; goes into the report."""

    count: int = 200
    seconds: float = 30.0
    seed: int = 0
    batch: int = 200
    teacher_steps: int = 50
    guidance: float = 1.0
    budgets: tuple[float, ...] = (0.01, 0.02, 0.05)
    parts: tuple[str, ...] = PARTS


class Evaluation:
    """The scenes and the renders that all streams are held against."""

    def __init__(self, config: ModelConfig, classifier: Classifier, settings: Settings, device: torch.device) -> None:
        self.config, self.classifier, self.settings = config, classifier, settings
        self.scenes = held_out_scenes(settings.count, seed=settings.seed)
        self.prompts = [canonical_caption(scene) for scene in self.scenes]
        self.misread: list[dict[str, dict[str, str]]] = [{} for _ in self.scenes]
        self.renders = self._render(device, settings.seed + 1)
        self.references = self._read(self.renders)

    def rendered(self, device: torch.device) -> dict[str, Any]:
        """How the renders do, and how far other renders of the same scenes are from them."""
        others = self._read(self._render(device, self.settings.seed + 2))
        return self._judge("renders", self.renders, self.references, others)

    def streamed(
        self, name: str, parts: Parts, sampling: Sampling, make_plan: Callable[[int], Plan] | None = None
    ) -> tuple[dict[str, Any], Recording, dict[str, Reading]]:
        """Stream every scene and judge it: the report's entry, and what it was made from."""
        begun = time.monotonic()
        recordings, passes, finite = [], [], True
        for start in range(0, len(self.prompts), self.settings.batch):
            prompts = self.prompts[start : start + self.settings.batch]
            plan = make_plan(len(prompts)) if make_plan else None
            stream = BatchStream(parts, prompts, sampling, seed=self.settings.seed + start, plan=plan)
            recordings.append(record(endless(stream), round(self.settings.seconds * FRAME_RATE)))
            passes.append(stream.passes / stream.chunk)
            finite = finite and bool(stream.finite)
        recording = join(recordings)
        readings = self._read(recording)
        entry = {
            "name": name,
            "steps": len(sampling.sigmas),
            "sampler": sampling.sampler,
            "guidance": sampling.guidance,
            "passes_per_chunk": float(torch.cat(passes).double().mean()),
            "finite": finite,
            **self._judge(name, recording, readings, self.references),
            "wall_seconds": time.monotonic() - begun,
        }
        print(f"{name}: {entry['early']['mean']:.1%}, {entry['late']['mean']:.1%} at the end, "
              f"{entry['wall_seconds']:.0f} s", flush=True)  # fmt: skip
        return entry, recording, readings

    def clips(self) -> list[dict[str, Any]]:
        """Every prompt, and which attributes were read wrong in whose clip."""
        return [{"prompt": p, "misread": found} for p, found in zip(self.prompts, self.misread, strict=True)]

    def _render(self, device: torch.device, seed: int) -> Recording:
        """Fresh renders, as if the early and the late clip were one stream with a cut."""
        height, width = self.config.resolution.default
        starts = (0.0, self.settings.seconds - CLIP_FRAMES / FRAME_RATE)
        early, late = (
            record([render(self.scenes, frames=CLIP_FRAMES, height=height, width=width, seed=seed, device=device,
                           start_time=start)], CLIP_FRAMES)
            for start in starts
        )  # fmt: skip
        return Recording(
            early.early, late.late,
            torch.cat([early.changes, late.changes], dim=1), torch.cat([early.jolts, late.jolts], dim=1),
        )  # fmt: skip

    def _read(self, recording: Recording) -> dict[str, Reading]:
        return {window: read_clips(self.classifier, getattr(recording, window)) for window in WINDOWS}

    def _judge(
        self, name: str, recording: Recording, readings: dict[str, Reading], references: dict[str, Reading]
    ) -> dict[str, Any]:
        """Accuracy, distance to the references and flicker of each window."""
        judged = {}
        for window, reading in readings.items():
            judged[window] = {
                **accuracy(reading.answers, self.scenes),
                "frechet": frechet_distance(reading.features, references[window].features),
                "flicker": recording.flicker(window),
            }
            for clip, wrong in zip(self.misread, misread(reading.answers, self.scenes), strict=True):
                if wrong:
                    clip[f"{name}, {window}"] = wrong
        return judged


def endless(stream: BatchStream) -> Iterator[Tensor]:
    while True:
        yield stream.next_chunk()


def evaluate(
    config: ModelConfig, student: Parts, teacher: Parts | None, classifier: Classifier, settings: Settings
) -> Report:
    """The whole report."""
    begun, device = time.monotonic(), student.device
    evaluation = Evaluation(config, classifier, settings, device)
    report: Report = {"schema": SCHEMA, "settings": asdict(settings), "machine": machine(device),
                      "precision": str(student.dtype).removeprefix("torch.")}  # fmt: skip
    report["renders"] = evaluation.rendered(device)
    few = shipped_sampling(config)
    own, fixed, readings = evaluation.streamed("student", student, few)
    report["streams"] = [own]
    if teacher is not None:
        report["streams"] += teacher_streams(evaluation, teacher, settings)
    if "switch" in settings.parts:
        report["switch"] = measure_switch(
            student, few, classifier, evaluation.scenes, (fixed, readings["early"].answers), evaluation.renders,
            batch=settings.batch, seed=settings.seed,
        )  # fmt: skip
    if "adaptive" in settings.parts:
        report["adaptive"] = list(adaptive_streams(evaluation, student, few, fixed))
    report["targets"] = check_targets(report)
    report["wall_seconds"] = time.monotonic() - begun
    report["clips"] = evaluation.clips()
    return report


def teacher_streams(evaluation: Evaluation, teacher: Parts, settings: Settings) -> Iterator[dict[str, Any]]:
    """The teacher in many steps, and in as few as the student has: what distillation is for."""
    few = len(shipped_sampling(teacher.config).sigmas)
    yield evaluation.streamed(
        "teacher", teacher, even_sampling(teacher.config, settings.teacher_steps, settings.guidance)
    )[0]
    if "undistilled" in settings.parts:
        sampling = Sampling(shipped_sampling(teacher.config).sigmas, "euler", settings.guidance)
        yield evaluation.streamed(f"teacher, {few} steps", teacher, sampling)[0]


def adaptive_streams(
    evaluation: Evaluation, student: Parts, sampling: Sampling, fixed: Recording
) -> Iterator[dict[str, Any]]:
    """The student leaving out passes in the middle, for each budget, held against the same noise in all passes."""
    for budget in evaluation.settings.budgets:
        plan = partial(WithinBudget, sampling=sampling, budget=budget)
        entry, recording, _ = evaluation.streamed(f"budget {budget:g}", student, sampling, plan)
        yield {**entry, "budget": budget, "psnr": peak_signal_to_noise(recording.early, fixed.early)}


def machine(device: torch.device) -> str:
    """For people: what the evaluation ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = thread_count()
    return f"{cores} CPU core{'s' if cores > 1 else ''}"


def write_report(path: Path, report: Report) -> None:
    """Write the JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.partial")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    arguments = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    precision = arguments.precision or ("float16" if device.type == "cuda" else "float32")
    config, dtype = postcard_config(), getattr(torch, precision)
    student = load_parts(config, arguments.autoencoder, arguments.student, device, dtype)
    teacher = load_parts(config, arguments.autoencoder, arguments.teacher, device, dtype) if arguments.teacher else None
    settings = Settings(
        count=arguments.count,
        seconds=arguments.seconds,
        seed=arguments.seed,
        batch=arguments.batch,
        teacher_steps=arguments.teacher_steps,
        guidance=arguments.guidance,
        budgets=tuple(arguments.budgets),
        parts=tuple(part for part in PARTS if part not in arguments.without),
    )
    report = evaluate(config, student, teacher, load_classifier(arguments.classifier, device), settings)
    write_report(arguments.out / "report.json", report)
    print(describe(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder with an autoencoder, or its decoder")
    parser.add_argument("--student", type=Path, required=True, help="folder with denoiser and text encoder to judge")
    parser.add_argument("--teacher", type=Path, help="folder with those that the student was distilled from")
    parser.add_argument("--classifier", type=Path, default=KEPT, help="folder that scripts.postcard.classifier wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.json")
    parser.add_argument("--count", type=int, default=Settings.count, help="held-out scenes, at least 2")
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of every stream, at least 5")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--batch", type=int, default=Settings.batch, help="streams at once")
    parser.add_argument("--teacher-steps", type=int, default=Settings.teacher_steps)
    parser.add_argument("--guidance", type=float, default=Settings.guidance, help="scale for the teacher, 1 for none")
    parser.add_argument("--budgets", type=float, nargs="*", default=Settings.budgets, help="of adaptive steps")
    parser.add_argument("--without", nargs="*", choices=PARTS, default=[], help="what to leave out")
    parser.add_argument(
        "--precision", choices=("float16", "bfloat16", "float32"), help="float16 on a GPU, as packages for GPUs compute"
    )
    arguments = parser.parse_args()
    if arguments.count < 2 or arguments.batch < 1 or arguments.seconds * FRAME_RATE < CLIP_FRAMES:
        parser.error("--count must be at least 2, --batch at least 1 and --seconds at least 5")
    return arguments


if __name__ == "__main__":
    main()
