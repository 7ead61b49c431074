"""Speech without recordings: eSpeak NG, through the shared library that the package espeakng-loader brings.

synthesiser = Synthesiser()
samples = synthesiser.speak("three five", Voice("f2", "en-us", words_per_minute=150, pitch=60))
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from dataclasses import dataclass

import espeakng_loader
import numpy as np
from numpy.typing import NDArray

from optimize.errors import UserError

ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc")
# The voice variants that sound like people of different ages; the robots and whisperers are left out.
SPEAKERS = (
    *("Alex", "Alicia", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco"),
    *("Michael", "Mike", "adam", "anika", "antonio", "belinda", "benjamin", "david", "edward", "f1", "f2", "f3", "f4"),
    *("f5", "john", "linda", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "paul", "quincy", "rob", "robert"),
    *("steph", "travis", "victor", "zac"),
)

_SYNCHRONOUS, _UTF8, _BY_CHARACTER = 2, 1, 1  # of espeak-ng/speak_lib.h
_RATE, _PITCH, _RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """speaker: one of SPEAKERS. accent: one of ACCENTS. pitch, expression: 0 to 99, 50 is the voice's own."""

    speaker: str
    accent: str = "en-us"
    words_per_minute: int = 160
    pitch: int = 50
    expression: int = 50

    def __post_init__(self) -> None:
        if self.speaker not in SPEAKERS or self.accent not in ACCENTS:  # the library would choose some other
            known = f"{', '.join(SPEAKERS)} and {', '.join(ACCENTS)}"
            raise UserError(f"eSpeak NG has no voice '{self.accent}+{self.speaker}'; choose from {known}")


class Synthesiser:
    """A synthesiser of one's own: a new one says the same texts in the same order with the same samples.

    The library's voices flutter by a counter that nothing resets, so each synthesiser loads its own copy of it.
    """

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(espeakng_loader.get_library_path(), folder)
            self._library = ctypes.CDLL(copy)
        self.rate_hz = int(
            self._library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        )
        self._pieces: list[NDArray[np.int16]] = []
        self._callback = _CALLBACK(self._keep)  # must live as long as the library
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: Voice) -> NDArray[np.float32]:
        """Samples (time,) in [-1, 1] at ``rate_hz``."""
        refused = self._library.espeak_SetVoiceByName(f"{voice.accent}+{voice.speaker}".encode())
        assert not refused, voice
        for parameter, value in ((_RATE, voice.words_per_minute), (_PITCH, voice.pitch), (_RANGE, voice.expression)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of the noise in breathy voices; else the time
        self._pieces.clear()
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, _BY_CHARACTER, 0, _UTF8, None, None)
        return (np.concatenate(self._pieces) / 32768).astype(np.float32)

    def _keep(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0
