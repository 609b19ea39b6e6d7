"""Put trained weights where the rtgen package ships them.

python -m scripts.postcard.pack --autoencoder runs/autoencoder --denoiser runs/denoiser
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rtgen.config.locate import bundled_directory
from scripts.postcard.tokens import save_tokenizer
from scripts.postcard.training import load_weights, save_weights

SHIPPED_LIMIT = 40_000_000
"""Bytes of all shipped weights together."""


def pack(autoencoder: Path, denoiser: Path, target: Path) -> int:
    """Write the shipped files; returns their size in bytes. The encoder stays behind: only decoding happens live."""
    decoder = {
        name.removeprefix("streaming_decoder."): value
        for name, value in load_weights(autoencoder, "autoencoder").items()
        if name.startswith("streaming_decoder.")
    }
    for file in target.glob("*.safetensors"):
        file.unlink()
    save_weights(target, "decoder", decoder)
    for name in ("denoiser", "text_encoder"):
        save_weights(target, name, load_weights(denoiser, name))
    save_tokenizer(target / "tokenizer.json")
    return sum(file.stat().st_size for file in target.glob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--denoiser", type=Path, required=True)
    parser.add_argument("--target", type=Path, default=bundled_directory("postcard"))
    arguments = parser.parse_args()
    size = pack(arguments.autoencoder, arguments.denoiser, arguments.target)
    print(f"{size:,} bytes in {arguments.target}")
    if size > SHIPPED_LIMIT:
        raise SystemExit(f"more than the {SHIPPED_LIMIT:,} bytes that may ship")


if __name__ == "__main__":
    main()
