"""Which published files make a model: their repositories, and where they are looked for in a user's folder.

This module imports nothing heavy: ``rtgen model show`` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from rtgen.errors import CheckpointError

Piece = Literal["text_encoder", "denoiser", "decoder", "tiny_decoder", "tokenizer"]
"""What a model is made of. ``decoder`` is the VAE's, ``tiny_decoder`` the one that may stand in for it."""

Family = Literal["self-forcing", "longlive", "wan"]
"""Whose denoiser it is; the other pieces are Wan 2.1's for all."""

WAN = "Wan-AI/Wan2.1-T2V-1.3B"
WAN_DIFFUSERS = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
SELF_FORCING = "gdhe17/Self-Forcing"
SELF_FORCING_DIFFUSERS = "wlsaidhi/SFWan2.1-T2V-1.3B-Diffusers"
LONGLIVE = "Efficient-Large-Model/LongLive-1.3B"
TAEHV = "madebyollin/taehv"
ON_GITHUB = frozenset({TAEHV})
"""The other repositories are on Hugging Face."""

UNDISTILLED = "these are the weights of Wan 2.1 itself, unless you replaced them: they make poor video in a few steps"
UNTOLD = "nothing here tells Self-Forcing's weights from those of Wan 2.1 itself, which make poor video in a few steps"


@dataclass(frozen=True)
class Candidate:
    """One published form of a piece: a file, or a folder of safetensors files, in a repository."""

    repository: str
    path: str
    """Inside the repository, with forward slashes. A trailing slash marks a folder."""
    sections: tuple[str, ...] = ()
    """Which part of a training checkpoint to take, the best first; empty: as the reader prefers."""
    adapter: str | None = None
    """An adapter of the same repository, to be merged."""
    adapter_alpha: float | None = None
    note: str | None = None
    """What the user should know when this form is taken."""


@dataclass(frozen=True)
class Source:
    """Where a piece was found."""

    piece: Piece
    candidate: Candidate
    path: Path
    adapter: Path | None = None

    @property
    def note(self) -> str | None:
        return self.candidate.note

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file whose bytes decide the weights. Raises CheckpointError for a folder that cannot be read."""
        from rtgen.models.checkpoints.source import folder_files

        files = folder_files(self.path) if self.path.is_dir() else (self.path,)
        return files if self.adapter is None else (*files, self.adapter)


@dataclass(frozen=True)
class Row:
    """One published form of a piece, and what of it is in a folder."""

    piece: Piece
    repository: str
    path: str
    found: Path | None
    bytes: int
    """On the disk, 0 where nothing was found."""
    chosen: bool
    """Whether a build takes this one: the first of its piece that is found."""
    note: str | None
    beside: str | None
    """The file that this one must come with: a base and its adapter."""


# LongLive's adapter: rank 256 and alpha 256, from configs/longlive_inference.yaml of github.com/NVlabs/LongLive, which
# also takes the plain generator and not the averaged one.
DENOISERS: Mapping[Family, tuple[Candidate, ...]] = {
    "self-forcing": (
        Candidate(SELF_FORCING, "checkpoints/self_forcing_dmd.pt"),
        Candidate(SELF_FORCING_DIFFUSERS, "transformer/", note=UNTOLD),
        Candidate(WAN_DIFFUSERS, "transformer/", note=UNDISTILLED),
        Candidate(WAN, "diffusion_pytorch_model.safetensors", note=UNDISTILLED),
    ),
    "longlive": (
        Candidate(
            LONGLIVE,
            "models/longlive_base.pt",
            sections=("generator", "generator_ema", "model"),
            adapter="models/lora.pt",
            adapter_alpha=256.0,
        ),
    ),
    "wan": (
        Candidate(WAN, "diffusion_pytorch_model.safetensors"),
        Candidate(WAN_DIFFUSERS, "transformer/"),
    ),
}
SHARED: Mapping[Piece, tuple[Candidate, ...]] = {
    "text_encoder": (
        Candidate(WAN, "models_t5_umt5-xxl-enc-bf16.pth"),
        Candidate(WAN_DIFFUSERS, "text_encoder/"),
    ),
    "decoder": (
        Candidate(WAN, "Wan2.1_VAE.pth"),
        Candidate(WAN_DIFFUSERS, "vae/"),
    ),
    "tiny_decoder": (
        Candidate(TAEHV, "taew2_1.pth"),
        Candidate(TAEHV, "safetensors/taew2_1.safetensors"),
    ),
    "tokenizer": (
        Candidate(WAN, "google/umt5-xxl/tokenizer.json"),
        Candidate(WAN_DIFFUSERS, "tokenizer/tokenizer.json"),
    ),
}
PARENTS = ("", "wan_models", "longlive_models")
"""Folders that the publishers' own instructions download into."""


def candidates(piece: Piece, family: Family) -> tuple[Candidate, ...]:
    """The published forms of a piece, the preferred first."""
    return DENOISERS[family] if piece == "denoiser" else SHARED[piece]


def find_sources(piece: Piece, folder: Path, family: Family = "self-forcing") -> Source:
    """The first published form of a piece that is in ``folder``.

    Files are found under their path in the repository, in a folder named after the repository, or by their bare name.
    Raises CheckpointError that names what is missing.
    """
    for candidate in candidates(piece, family):
        path = _locate(folder, candidate.repository, candidate.path)
        adapter = _locate(folder, candidate.repository, candidate.adapter) if candidate.adapter else None
        if path is not None and (adapter is not None or candidate.adapter is None):
            return Source(piece, candidate, path, adapter)
    wanted = " or ".join(_title(candidate) for candidate in candidates(piece, family))
    raise CheckpointError(
        f"no {piece.replace('_', ' ')} in {folder}: it needs {wanted}",
        hint="rtgen model show MODEL lists the files of a model and where they come from",
    )


def explain(folder: Path | None, family: Family = "self-forcing") -> tuple[Row, ...]:
    """Every published form of every piece of a model, and what of it ``folder`` holds. Opens no file."""
    rows: list[Row] = []
    pieces: tuple[Piece, ...] = ("text_encoder", "denoiser", "decoder", "tiny_decoder", "tokenizer")
    for piece in pieces:
        taken = False
        for candidate in candidates(piece, family):
            parts = (candidate.path, *([candidate.adapter] if candidate.adapter else []))
            found = [_locate(folder, candidate.repository, part) if folder else None for part in parts]
            chosen = not taken and all(found)
            taken |= chosen
            others = (candidate.adapter, candidate.path) if candidate.adapter else (None,)
            rows += [
                Row(piece, candidate.repository, part, place, _size(place), chosen, candidate.note, other)
                for part, place, other in zip(parts, found, others, strict=True)
            ]
    return tuple(rows)


def _locate(folder: Path, repository: str, path: str) -> Path | None:
    """Where a repository's file or folder is in a user's folder, None if nowhere."""
    name = repository.partition("/")[2]
    tails = [path, f"{name}/{path}", f"{repository}/{path}"]
    places = [folder / parent / tail for tail in tails for parent in PARENTS]
    if path.endswith("/"):
        return next((place for place in places if any(place.glob("*.safetensors"))), None)
    places.append(folder / PurePosixPath(path).name)
    return next((place for place in places if place.is_file()), None)


def _size(place: Path | None) -> int:
    if place is None:
        return 0
    return sum(file.stat().st_size for file in (place.glob("*.safetensors") if place.is_dir() else [place]))


def _title(candidate: Candidate) -> str:
    parts = [candidate.path, *([candidate.adapter] if candidate.adapter else [])]
    return f"{' and '.join(parts)} of {candidate.repository}"
