from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.hosted import Hosted
from optimize.errors import UserError


def test_a_server_that_cannot_start_is_given_up_soon(tmp_path: Path) -> None:
    hosted = Hosted(tmp_path / "none", "speech")
    with pytest.raises(UserError) as raised, hosted:
        pass
    message = str(raised.value)
    assert "does not serve model 'speech'; its last words: error: model repository" in message
    assert "none' does not exist" in message
    assert not any(sign in message for sign in "[]\n")
    assert hosted.restarts < 10
