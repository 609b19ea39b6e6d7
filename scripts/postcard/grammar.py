"""The compositional grammar of postcard scenes: attributes, captions and the held-out split.

A scene is one value for each of seven attributes. Everything here is standard library only, so that
the prompts can be listed, drawn and checked where no tensor library is installed.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import astuple, dataclass

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "place": ("beach", "mountains", "desert", "city", "forest", "meadow", "lake", "island"),
    "time": ("dawn", "noon", "sunset", "night"),
    "weather": ("clear", "cloudy", "rain", "snow", "fog"),
    "subject": (
        "hot air balloon",
        "kite",
        "bird",
        "airship",
        "paper plane",
        "butterfly",
        "flying saucer",
        "umbrella",
    ),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white"),
    "motion": ("drifts left", "drifts right", "bobs up and down", "circles", "hovers"),
    "camera": ("still", "pans left", "pans right", "sways"),
}
"""Ordered values of every attribute; a value's position is its class index."""

HELD_OUT_FRACTION = 0.05
"""Share of all combinations that training never draws."""

# The first phrase of each value is the canonical one. No phrase may fit two values of an attribute.
_PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "place": {
        "beach": ("a beach", "the seaside", "a sandy shore", "a sandy coast"),
        "mountains": ("the mountains", "rocky peaks", "a mountain range", "tall mountains"),
        "desert": ("a desert", "the dunes", "a desert of sand dunes"),
        "city": ("a city", "the town", "a city skyline", "tall buildings"),
        "forest": ("a forest", "the woods", "a pine forest", "the pine trees"),
        "meadow": ("a meadow", "flowery hills", "a grassy meadow", "a field of flowers"),
        "lake": ("a lake", "a calm lake", "a quiet lake", "the mirror of a lake"),
        "island": ("an island", "a tropical island", "a palm island", "an island with palm trees"),
    },
    "time": {
        "dawn": ("at dawn", "at sunrise", "early in the morning", "at daybreak"),
        "noon": ("at noon", "at midday", "in the middle of the day", "in broad daylight"),
        "sunset": ("at sunset", "at dusk", "in the evening glow", "as the sun sets"),
        "night": ("at night", "by moonlight", "at midnight", "in the dark of night"),
    },
    "weather": {
        "clear": ("under a clear sky", "in clear weather", "under a cloudless sky"),
        "cloudy": ("under a cloudy sky", "in cloudy weather", "beneath the clouds"),
        "rain": ("in the rain", "in rainy weather", "while it rains", "in a downpour"),
        "snow": ("in falling snow", "in snowy weather", "while it snows", "among snowflakes"),
        "fog": ("in the fog", "in foggy weather", "in thick mist", "through the haze"),
    },
    "subject": {
        "hot air balloon": ("hot air balloon", "balloon", "hot air balloon with a basket"),
        "kite": ("kite", "kite with a tail", "diamond kite"),
        "bird": ("bird", "flying bird", "bird with flapping wings"),
        "airship": ("airship", "zeppelin", "blimp"),
        "paper plane": ("paper plane", "paper airplane", "folded paper plane"),
        "butterfly": ("butterfly", "fluttering butterfly"),
        "flying saucer": ("flying saucer", "saucer", "ufo"),
        "umbrella": ("umbrella", "open umbrella", "parasol"),
    },
    "colour": {
        "red": ("red", "scarlet", "crimson"),
        "orange": ("orange", "tangerine"),
        "yellow": ("yellow", "golden", "lemon"),
        "green": ("green", "emerald"),
        "blue": ("blue", "azure", "cobalt"),
        "purple": ("purple", "violet"),
        "pink": ("pink", "rosy"),
        "white": ("white", "ivory", "pearly white"),
    },
    "motion": {
        "drifts left": ("drifting left", "floating to the left", "moving left", "gliding left"),
        "drifts right": ("drifting right", "floating to the right", "moving right", "gliding right"),
        "bobs up and down": ("bobbing up and down", "rising and falling", "moving up and down"),
        "circles": ("circling", "going round in circles", "flying in a circle", "looping around"),
        "hovers": ("hovering", "hanging still", "hovering in place", ""),
    },
    "camera": {
        "still": ("still camera", "static shot", "the camera stays still", ""),
        "pans left": ("camera panning left", "the camera pans left", "pan to the left"),
        "pans right": ("camera panning right", "the camera pans right", "pan to the right"),
        "sways": ("swaying camera", "the camera sways", "camera swaying from side to side"),
    },
}

_TEMPLATES: tuple[str, ...] = (
    "{article} {colour} {subject} {motion} over {place} {time} {weather}, {camera}",
    "{article} {colour} {subject} {motion} above {place} {weather} {time}, {camera}",
    "{time}, {article} {colour} {subject} {motion} over {place} {weather}, {camera}",
    "{weather} {time}, {article} {colour} {subject} {motion} above {place}, {camera}",
    "over {place} {time}, {article} {colour} {subject} {motion} {weather}, {camera}",
    "{camera}, {article} {colour} {subject} {motion} over {place} {weather} {time}",
    "{place} {time} {weather}, {article} {colour} {subject} {motion}, {camera}",
)

_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class Scene:
    """One value per attribute, in the order of `ATTRIBUTES`."""

    place: str
    time: str
    weather: str
    subject: str
    colour: str
    motion: str
    camera: str

    def __post_init__(self) -> None:
        for (name, values), value in zip(ATTRIBUTES.items(), astuple(self), strict=True):
            if value not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}; got {value!r}")

    def indices(self) -> tuple[int, ...]:
        """The class index of each attribute, in the order of `ATTRIBUTES`."""
        return tuple(values.index(value) for values, value in zip(ATTRIBUTES.values(), astuple(self), strict=True))

    @classmethod
    def from_indices(cls, indices: tuple[int, ...]) -> Scene:
        """The scene whose `indices` these are."""
        return cls(*(values[i] for values, i in zip(ATTRIBUTES.values(), indices, strict=True)))


def is_held_out(scene: Scene) -> bool:
    """Whether the combination belongs to the test split; stable across runs and machines."""
    digest = hashlib.sha256("|".join(astuple(scene)).encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_FRACTION * 2.0**64


def random_scene(rng: random.Random) -> Scene:
    """A uniformly drawn scene of the training split."""
    while is_held_out(scene := _any_scene(rng)):
        pass
    return scene


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """`count` distinct scenes of the test split."""
    rng = random.Random(seed)
    found: dict[Scene, None] = {}
    while len(found) < count:
        if is_held_out(scene := _any_scene(rng)):
            found[scene] = None
    return list(found)


def caption(scene: Scene, rng: random.Random, *, omit: float = 0.0) -> str:
    """One of the many phrasings of a scene; each names every attribute but stillness, which may go unsaid.

    With probability `omit` each, time, weather, motion and camera are left out, as people do.
    """
    chosen = {name: rng.choice(_PHRASES[name][getattr(scene, name)]) for name in ATTRIBUTES}
    for name in ("time", "weather", "motion", "camera"):
        if rng.random() < omit:
            chosen[name] = ""
    return _fill(rng.choice(_TEMPLATES), chosen)


def canonical_caption(scene: Scene) -> str:
    """The one phrasing to use where captions must be comparable."""
    return _fill(_TEMPLATES[0], {name: _PHRASES[name][getattr(scene, name)][0] for name in ATTRIBUTES})


def words(text: str) -> list[str]:
    """The lower-case words of a caption, punctuation dropped."""
    return _WORD.findall(text.lower())


def vocabulary() -> list[str]:
    """Every word that any phrasing can produce, sorted."""
    texts = [phrase for values in _PHRASES.values() for phrases in values.values() for phrase in phrases]
    texts += [re.sub(r"\{\w+\}", " ", template) for template in _TEMPLATES]
    return sorted({"a", "an"}.union(*(words(text) for text in texts)))


def _any_scene(rng: random.Random) -> Scene:
    return Scene(*(rng.choice(values) for values in ATTRIBUTES.values()))


def _fill(template: str, chosen: dict[str, str]) -> str:
    """Put phrases into a template and tidy up after the empty ones."""
    article = "an" if chosen["colour"][0] in "aeiou" else "a"
    text = template.format(article=article, **chosen)
    clauses = (" ".join(clause.split()) for clause in text.split(","))
    return ", ".join(clause for clause in clauses if clause)
