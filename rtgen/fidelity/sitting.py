"""FP16 and every recipe before the same camera: clips of the same prompts and seeds, compared as they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rtgen.fidelity.clips import ClipFolder, ClipPlan, make_clips
from rtgen.fidelity.comparison import Asked, Comparison, reference_figures
from rtgen.fidelity.pictures import Pictures, SideBySide, side_by_side, strip
from rtgen.fidelity.verdicts import EARLY_SECONDS

if TYPE_CHECKING:
    from rtgen.engine.package import Package
    from rtgen.fidelity.attributes import Answers, Classifier, EvaluationSet
    from rtgen.fidelity.clips import Advance
    from rtgen.fidelity.findings import Measured, Reference
    from rtgen.fidelity.metrics import Frames
    from rtgen.fidelity.perceptual import Network
    from rtgen.runtime.session import Session

_REFERENCE: Final = "reference"
_CANDIDATE: Final = "candidate"


@dataclass
class Takes:
    """What was made of one variant, by length in seconds."""

    comparisons: dict[float, Comparison]
    answers: dict[float, list[Answers]]


@dataclass
class Sitting:
    """Everything that the variants share."""

    package: Package
    """Of the model for the processor: text encoder, decoder and tokenizer come from it."""
    plan: ClipPlan
    network: Network | None
    """LPIPS, where it can be measured."""
    classifier: Classifier | None
    evaluation: EvaluationSet | None
    _clips: ClipFolder = field(default_factory=ClipFolder)
    _read: dict[float, list[Answers]] = field(default_factory=dict)

    def close(self) -> None:
        self._clips.close()

    def reference(self, denoiser: Callable[[], Session], advance: Advance) -> tuple[Reference, ...]:
        """Make FP16's clips, which all others are compared with."""
        self._read = self._make(denoiser, _REFERENCE, None, advance).answers
        return tuple(
            reference_figures(seconds, self._asked(seconds), self._read[seconds]) for seconds in self.plan.lengths
        )

    def candidate(self, denoiser: Callable[[], Session], advance: Advance) -> tuple[Measured, ...]:
        """Make another variant's clips and compare them, for each length. ``denoiser`` opens a session of it."""
        rate = self.plan.frames_per_second
        comparisons = {seconds: Comparison(rate, self.network) for seconds in self.plan.lengths}
        takes = self._make(denoiser, _CANDIDATE, comparisons, advance)
        return tuple(
            comparisons[seconds].measured(seconds, self._asked(seconds), takes.answers[seconds], self._read[seconds])
            for seconds in self.plan.lengths
        )

    def pictures(self, measured: Sequence[Measured]) -> Pictures:
        """Of the last candidate: its clips of median and of least PSNR, and stills of a longest one."""
        early = measured[0]
        order = sorted(range(early.clips), key=lambda number: _finite(early.clip_psnr_db[number]))
        chosen = {order[len(order) // 2]: "the median clip"} | {order[0]: "the worst clip"}
        frames = self.plan.frames(min(self.plan.lengths[0], EARLY_SECONDS))
        beside = tuple(
            self._side_by_side(number, frames, what if early.clips > 1 else "the clip")
            for number, what in chosen.items()
        )
        rate = self.plan.frames_per_second
        one, other = (self._clips.get(f"{kind}-0") for kind in (_CANDIDATE, _REFERENCE))
        clip = self.plan.clips[0]
        return Pictures(beside, strip(one, other, rate, f"“{clip.prompt}”, seed {clip.seed}"))

    def _side_by_side(self, number: int, frames: int, what: str) -> SideBySide:
        clip = self.plan.clips[number]
        one, other = (self._clips.get(f"{kind}-{number}")[:frames] for kind in (_CANDIDATE, _REFERENCE))
        caption = f"{what}: “{clip.prompt}”, seed {clip.seed}"
        return side_by_side(one, other, self.plan.frames_per_second, caption[0].upper() + caption[1:])

    def _make(
        self, denoiser: Callable[[], Session], kind: str, comparisons: dict[float, Comparison] | None, advance: Advance
    ) -> Takes:
        takes = Takes(comparisons or {}, {seconds: [] for seconds in self.plan.lengths})

        def take(number: int, frames: Frames) -> None:
            self._clips.put(f"{kind}-{number}", frames)
            for seconds in self.plan.lengths:
                if number < self.plan.count(seconds):
                    self._take(takes, number, seconds, frames[: self.plan.frames(seconds)])

        make_clips(self.package, denoiser, self.plan, take, advance)
        return takes

    def _take(self, takes: Takes, number: int, seconds: float, frames: Frames) -> None:
        if takes.comparisons:
            reference = self._clips.get(f"{_REFERENCE}-{number}")[: len(frames)]
            takes.comparisons[seconds].add(frames, reference)
        if self.classifier is not None and self._asked(seconds) is not None:
            takes.answers[seconds].append(self.classifier.read(frames))

    def _asked(self, seconds: float) -> Asked | None:
        """What the clips of a length should show, if the classifier can read them."""
        if self.classifier is None or self.evaluation is None or self.plan.frames(seconds) < self.classifier.frames:
            return None
        prompts = [self.evaluation.prompts[n % len(self.evaluation.prompts)] for n in range(self.plan.count(seconds))]
        return Asked(tuple(self.evaluation.attributes), self.evaluation.truth(prompts))


def _finite(value: float | None) -> float:
    return float("inf") if value is None else value
