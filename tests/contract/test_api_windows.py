"""Completion windows: callers choose from the operator's list."""

from __future__ import annotations

import pytest
from openai import AsyncOpenAI, BadRequestError
from pydantic import ValidationError

from schemas.records import BatchCreate
from streams.settings import Settings
from tests.support.gateway import running_gateway


async def create(client: AsyncOpenAI, window: str) -> dict[str, object]:
    made = await client.batches.create(
        input_file_id="file-1",
        endpoint="/v1/chat/completions",
        completion_window=window,  # type: ignore[arg-type]
    )
    return made.to_dict()


async def test_a_window_of_the_list_is_taken_and_another_is_refused_by_name() -> None:
    windows = {"24h": 86_400, "1h": 3600}
    async with running_gateway(settings=Settings(completion_windows=windows)) as gateway:
        for name, seconds in windows.items():
            made = await create(gateway.client(), name)
            assert made["completion_window"] == name
            assert made["expires_at"] == int(str(made["created_at"])) + seconds
        commands = gateway.commands(BatchCreate)
        seconds_asked = {c.window_s for c in commands if isinstance(c, BatchCreate)}
        assert seconds_asked == {86_400, 3600}
        with pytest.raises(BadRequestError) as caught:
            await create(gateway.client(), "2h")
        assert "'2h'" in str(caught.value)
        assert "Supported values: '24h' and '1h'" in str(caught.value)
        assert len(gateway.commands(BatchCreate)) == 2


def test_the_list_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKHAUL_COMPLETION_WINDOWS", '{"24h": 86400, "15m": 900}')
    assert Settings().completion_windows == {"24h": 86_400, "15m": 900}


@pytest.mark.parametrize(
    "windows", ["{}", '{"none": 0}', '{"month": 2592000}', '{"a b": 60}', '{"": 60}', "24h"]
)
def test_a_list_that_cannot_be_kept_is_refused_at_the_start(
    windows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKHAUL_COMPLETION_WINDOWS", windows)
    with pytest.raises((ValidationError, ValueError)):
        Settings()
