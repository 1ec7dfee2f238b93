"""The meter sink that an installation has."""

from __future__ import annotations

from pathlib import Path

from streams.adapters.meter_file import FileMeterSink
from streams.adapters.meter_stripe import StripeMeterSink
from streams.ports.meter_sink import MeterSink


def open_sink(stripe_key: str | None, stripe_api_base: str | None, data_dir: Path) -> MeterSink:
    """Stripe where there is a key for it, otherwise files in the data folder."""
    if stripe_key is None:
        return FileMeterSink(usage_folder(data_dir))
    return StripeMeterSink(stripe_key, stripe_api_base)


def usage_folder(data_dir: Path) -> Path:
    """Where the files are."""
    return data_dir / "usage"
