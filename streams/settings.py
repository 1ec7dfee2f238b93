"""Settings of every process, from `BACKHAUL_*` environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from streams.domain.upstreams import UpstreamTable, UpstreamTableError, parse_upstreams

_MIB = 1024 * 1024


WindowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
WindowSeconds = Annotated[int, Field(ge=1, le=7 * 86_400)]
RetryAfterSeconds = Annotated[float, Field(ge=0, le=86_400)]


class Settings(BaseSettings):
    """One process's settings. `backhaul up` sets them for its children."""

    model_config = SettingsConfigDict(env_prefix="BACKHAUL_", extra="ignore", frozen=True)

    #: Bootstrap servers, `host:port[,host:port]`.
    kafka: str = "127.0.0.1:9092"
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_username: str | None = None
    kafka_password: SecretStr | None = None
    kafka_ca_file: Path | None = None
    kafka_cert_file: Path | None = None
    kafka_key_file: Path | None = None
    #: Replicas of created topics and changelogs; `backhaul up` sets 1 for its one broker.
    kafka_replicas: int = Field(default=3, ge=1, le=9)
    #: False only for brokers without InitProducerId (Tansu).
    kafka_idempotence: bool = True
    #: A group member that is silent for longer is thrown out and its work is taken over.
    session_timeout_s: float = Field(default=15.0, ge=2.0)
    #: First part of every topic's and group's name.
    topic_prefix: str = Field(default="backhaul", pattern=r"^[A-Za-z0-9_-]{1,60}$")

    #: Stable name of this process among those of its role; also the static group member id.
    instance: str = Field(default="0", pattern=r"^[A-Za-z0-9_-]{1,60}$")
    #: Folder for what one process keeps on disk (read model, broker).
    data_dir: Path = Path("backhaul-data")
    #: Object store: a folder or a file://, s3://, gs:// or az:// URL; default DATA_DIR/objects.
    store_url: str | None = None
    #: The upstream table's file (YAML).
    upstreams_file: Path | None = None
    #: The price book's file (YAML); without one nothing is priced, but usage is metered.
    prices_file: Path | None = None
    #: A secret or restricted key of Stripe's; without one, usage is written to files.
    stripe_key: SecretStr | None = None
    #: The signing secret of the event destination at Stripe that is this gateway's
    #: /stripe/webhook; without one there is no such path.
    stripe_webhook_secret: SecretStr | None = Field(default=None, min_length=1)
    #: Another address of Stripe's API, for stand-ins.
    stripe_api_base: str | None = Field(default=None, pattern=r"^https?://")
    #: How long a batch's usage is summed up before it is sent the first time.
    meter_window_s: float = Field(default=300.0, ge=1.0, le=3600.0)
    #: Calls to Stripe a second of all meters together; Stripe allows 1,000 in live mode.
    meter_calls_per_s: float = Field(default=100.0, gt=0, le=1000.0)

    #: Webhooks may be at private addresses and over plain HTTP: only where tenants are trusted.
    webhook_allow_private: bool = False
    #: Seconds from each failed attempt at a webhook to the next; after the last it is given up.
    webhook_retry_after_s: tuple[RetryAfterSeconds, ...] = Field(
        default=(5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 29_000), max_length=100
    )

    #: Where the gateway listens.
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    #: Where each role's health and metrics endpoint listens; 0 picks a free port.
    health_host: str = "127.0.0.1"
    health_port: int = Field(default=0, ge=0, le=65535)
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    #: Limits of contract.md.
    max_batch_lines: int = Field(default=50_000, ge=1)
    max_batch_file_bytes: int = Field(default=200 * _MIB, ge=1)
    max_file_bytes: int = Field(default=512 * _MIB, ge=1)
    max_line_bytes: int = Field(default=4 * _MIB, ge=1024)
    #: Completion windows that callers may ask for, name to seconds, as a JSON object. Longer than
    #: a week none may be: lines on their way are kept for eight days.
    completion_windows: dict[WindowName, WindowSeconds] = Field(
        default={"24h": 86_400}, min_length=1
    )
    #: Stored prompts of a tenant, versions of one prompt, and bytes of all a tenant's versions.
    max_prompts: int = Field(default=1000, ge=1)
    max_prompt_versions: int = Field(default=1000, ge=1, le=10_000)
    max_prompt_bytes: int = Field(default=64 * _MIB, ge=1)
    #: Bodies above this travel as a claim check.
    claim_check_bytes: int = Field(default=256 * 1024, ge=1024)
    #: Real-time requests that one gateway waits for at once; more are told to come back, and so is
    #: a tenant that has more open than there is room left.
    realtime_max_pending: int = Field(default=800, ge=1)
    #: How long a real-time request may take in all.
    realtime_timeout_s: float = Field(default=600.0, gt=0)
    #: How much of a streamed answer a gateway holds for a client that does not read it.
    realtime_buffer_bytes: int = Field(default=4 * _MIB, ge=1024)

    @property
    def resolved_store_url(self) -> str:
        """The object store's URL with the default filled in."""
        return self.store_url or str((self.data_dir / "objects").absolute())


def load_upstreams(settings: Settings) -> UpstreamTable:
    """The upstream table. Raises UpstreamTableError with the file's name and the remedy."""
    path = settings.upstreams_file
    if path is None:
        raise UpstreamTableError("No upstream table: set BACKHAUL_UPSTREAMS_FILE to a YAML file.")
    try:
        return parse_upstreams(yaml.safe_load(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, UpstreamTableError) as error:
        raise UpstreamTableError(f"{path}: {error}") from error
