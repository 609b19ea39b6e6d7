"""Which single change of a setting would lift the frame rate most."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rtgen.config.load import can_run, list_recipes, load_recipe
from rtgen.config.model import Size
from rtgen.estimate.efficiencies import Efficiencies
from rtgen.estimate.prediction import Prediction, predict
from rtgen.estimate.setting import Setting, possible_kv_bits, possible_window


@dataclass(frozen=True)
class Alternative:
    """One setting changed."""

    option: str
    """What to type."""
    prediction: Prediction
    gain: float
    """Of the end-to-end rate: 0.5 is half as much again."""
    note: str
    """What it costs besides; empty if nothing is known."""


def alternatives(base: Prediction, efficiencies: Efficiencies) -> list[Alternative]:
    """Every change that is tried, the greatest gain first; those that would lose are at the end."""
    tried = [
        Alternative(option, prediction, prediction.fps / base.fps - 1, note)
        for option, changed, note in _changes(base.setting)
        for prediction in (predict(changed, efficiencies),)
    ]
    return sorted(tried, key=lambda item: item.gain, reverse=True)


def _changes(setting: Setting) -> Iterator[tuple[str, Setting, str]]:
    """What to type, the setting it gives, and what is known against it."""
    yield from _recipes(setting)
    for bits in possible_kv_bits(setting):
        if bits != setting.kv_bits:
            yield f"--kv-bits {bits}", replace(setting, kv_bits=bits), ""
    for window in _shorter_windows(setting):
        yield f"--window {window}", setting.with_window(window), "remembers less; the model may not be trained for it"
    for steps in sorted({setting.steps - 1, setting.steps // 2} - {0, setting.steps}, reverse=True):
        yield f"--steps {steps}", replace(setting, steps=steps), "less detail; the model may not be distilled for it"
    for size in _smaller_sizes(setting):
        yield f"--size {size[0]}x{size[1]}", replace(setting, size=size), "smaller frames"
    for decoder in setting.model.decoders:
        if decoder != setting.model.decoder:
            note = "less sharp" if decoder == "taehv" else "sharper"
            yield f"--decoder {decoder}", setting.with_decoder(decoder), note


def _recipes(setting: Setting) -> Iterator[tuple[str, Setting, str]]:
    for name in list_recipes():
        recipe = load_recipe(name)
        same_precision = recipe.precision == setting.recipe.precision
        if name != setting.recipe.name and can_run(setting.gpu, recipe) and same_precision:
            yield f"--recipe {name}", setting.with_recipe(recipe), ""


def _shorter_windows(setting: Setting) -> list[int]:
    """About three quarters and half of the present one."""
    cache = setting.model.cache
    wanted = {cache.window * share // 4 // cache.chunk * cache.chunk for share in (3, 2)}
    return sorted(
        (window for window in wanted if 0 < window < cache.window and possible_window(setting.model, window)),
        reverse=True,
    )


def _smaller_sizes(setting: Setting) -> list[Size]:
    """Those of the model's sizes in the same orientation that have fewer pixels, the greatest first."""
    height, width = setting.size
    sizes = {profile.opt for profile in setting.model.resolution.profiles} | {setting.model.resolution.default}
    smaller = {size for size in sizes if size[0] * size[1] < height * width and (size[0] > size[1]) == (height > width)}
    return sorted(smaller, key=lambda size: size[0] * size[1], reverse=True)
