"""A voice, made from its parts: a glottal tone shaped by the formants of vowels, syllables, and breath between them.

What is made here is speech enough for a detector that was trained on people; nothing is downloaded and nobody recorded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000

Samples = NDArray[np.float32]

VOWELS: dict[str, tuple[tuple[float, float], ...]] = {
    # (formant, bandwidth) in Hz, the first three of a male voice; after Peterson and Barney (1952).
    "a": ((730, 90), (1090, 110), (2440, 170)),
    "e": ((530, 60), (1840, 100), (2480, 150)),
    "i": ((270, 60), (2290, 100), (3010, 200)),
    "o": ((570, 70), (840, 80), (2410, 150)),
    "u": ((300, 60), (870, 90), (2240, 150)),
}


@dataclass(frozen=True)
class Phrase:
    """What is said, a vowel a syllable, from `start_s` on."""

    start_s: float
    syllables: str
    pitch_hz: float = 120.0

    @property
    def end_s(self) -> float:
        """When the last syllable ends."""
        return self.start_s + len(self.syllables) * SYLLABLE_S


SYLLABLE_S = 0.2


def render(phrases: tuple[Phrase, ...], length_s: float, *, seed: int = 7) -> Samples:
    """The phrases over faint noise, as samples of -1 to 1 at 16 kHz."""
    chance = np.random.default_rng(seed)
    sound = chance.normal(0, 0.0005, int(length_s * RATE_HZ))
    for phrase in phrases:
        spoken = _speak(phrase, chance)
        start = int(phrase.start_s * RATE_HZ)
        sound[start : start + len(spoken)] += spoken[: len(sound) - start]
    return sound.astype(np.float32)


def _speak(phrase: Phrase, chance: np.random.Generator) -> NDArray[np.float64]:
    count = int(SYLLABLE_S * RATE_HZ)
    total = count * len(phrase.syllables)
    at = np.arange(total) / RATE_HZ
    # Pitch falls through a phrase, wavers at 5 Hz and is never quite steady.
    knots = np.arange(0, at[-1] + 0.1, 0.05)
    wander = np.interp(at, knots, chance.normal(0, 1.5, len(knots)))
    pitch = phrase.pitch_hz * (1.12 - 0.22 * at / at[-1]) + 2.0 * np.sin(2 * np.pi * 5 * at) + wander
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    formants = _glide([VOWELS[vowel] for vowel in phrase.syllables], total, count)
    voice = np.zeros(total)
    for harmonic in range(1, int(3800 / phrase.pitch_hz)):
        frequency = harmonic * pitch
        voice += _response(frequency, formants) / harmonic * np.sin(harmonic * phase)
    breath = chance.normal(0, 0.02, total)
    shape = np.tile(_envelope(count), len(phrase.syllables))
    loud = (voice / np.abs(voice).max() + breath) * shape
    return 0.35 * (loud + _consonants(len(phrase.syllables), count, chance))


def _glide(targets: list[tuple[tuple[float, float], ...]], total: int, count: int) -> NDArray[np.float64]:
    """Formants and bandwidths for each sample, [3, 2, total]: vowels run into each other as they do in a mouth."""
    centres = np.arange(len(targets)) * count + count / 2
    values = np.array(targets, dtype=float)
    at = np.arange(total)
    return np.array([[np.interp(at, centres, values[:, f, k]) for k in range(2)] for f in range(3)])


def _response(frequency: NDArray[np.float64], formants: NDArray[np.float64]) -> NDArray[np.float64]:
    gain = np.zeros_like(frequency)
    for weight, (centre, width) in zip((1.0, 0.6, 0.3), formants, strict=True):
        gain += weight / (1 + ((frequency - centre) / width) ** 2)
    return gain + 0.02


def _envelope(count: int) -> NDArray[np.float64]:
    at = np.linspace(0, 1, count)
    return np.clip(np.minimum(at / 0.2, (1 - at) / 0.25), 0, 1) ** 0.7


def _consonants(syllables: int, count: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """A short hiss before every other syllable."""
    noise = np.diff(chance.normal(0, 0.08, syllables * count + 1))
    at = np.arange(syllables * count)
    gate = ((at // count) % 2 == 1) & (at % count < 0.18 * count)
    return noise * gate
