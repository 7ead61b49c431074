"""What an interrupted training needs in order to go on: one file beside the checkpoint, gone when that is complete.

Written after every epoch. ``--resume`` goes on from it, to the same weights as if nothing had happened.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch

from optimize.checkpoint import replace_file
from optimize.errors import UserError


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Partial:
    """The file of one training. purpose: what is trained with which settings; another purpose's file is refused."""

    path: Path
    purpose: str

    def save(self, parts: Mapping[str, Stateful], values: Mapping[str, Any]) -> None:
        """Keep the state of ``parts``, the plain ``values`` and that of torch's random numbers."""
        content = io.BytesIO()
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"purpose": self.purpose, "states": states, **values, "random": torch.get_rng_state()}, content)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, content.getvalue())

    def restore(self, parts: Mapping[str, Stateful]) -> dict[str, Any]:
        """Bring ``parts`` and torch's random numbers back to where they were; returns the values.

        Raises UserError: no such file, a damaged one, or one of another training.
        """
        try:
            content: dict[str, Any] = torch.load(self.path, weights_only=True)
        except FileNotFoundError:
            raise UserError(f"'{self.path}' does not exist: nothing was interrupted; train without --resume") from None
        except (RuntimeError, UnpicklingError, EOFError) as error:
            raise UserError(f"'{self.path}' cannot be read ({error}); train without --resume") from None
        if content["purpose"] != self.purpose:
            raise UserError(
                f"'{self.path}' belongs to another training ({content['purpose']}, now {self.purpose}); "
                "train without --resume"
            )
        for name, part in parts.items():
            part.load_state_dict(content["states"][name])
        torch.set_rng_state(content["random"])
        return content

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
