from __future__ import annotations

from collections.abc import Callable

import pytest

from loadtest import ab, capacity, chaos, repeats, soak, streams


@pytest.mark.parametrize("main", [each.main for each in (ab, capacity, chaos, repeats, soak, streams)])
def test_a_folder_that_is_missing_is_told_before_the_work(
    main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--json", "/no/such/folder/x.json"])
    assert "argument --json: the folder '/no/such/folder' does not exist; create it first" in capsys.readouterr().err
