"""The read model, in memory and on disk: what it shows follows from the log, however it came."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.read_model.queries import Queries
from api.read_model.schema import TOPICS, ended_at_ms
from api.read_model.store import AWAY_LIMIT_MS, ReadModelError, ReadModelStore
from schemas.records import (
    ApiKeyRecord,
    BatchCancel,
    BatchChange,
    BatchCreate,
    BatchPause,
    BatchResume,
    BatchSnapshot,
    BatchStatus,
    FileRecord,
    ObjectRef,
    Record,
)
from schemas.topics import ACCOUNT, BATCH_COMMAND, BATCH_STATUS, FILE, Topic
from streams.domain.batch.control import MAX_COMMANDS
from streams.domain.clock import ManualClock
from streams.kafka.reader import ReadRecord

NOW = 1_700_000_000_500
CREATE = BatchCreate(
    command_id="c1",
    batch_id="batch_1",
    tenant="acme",
    at_ms=NOW,
    endpoint="/v1/embeddings",
    input_file_id="file-1",
    completion_window="24h",
    window_s=86_400,
    metadata={"a": "b"},
    request_hash="h1",
)
SNAPSHOT = BatchSnapshot(
    batch_id="batch_1",
    tenant="acme",
    revision=5,
    status=BatchStatus.IN_PROGRESS,
    created_at_ms=NOW // 1000 * 1000,
    expires_at_ms=NOW // 1000 * 1000 + 86_400_000,
    endpoint="/v1/embeddings",
    input_file_id="file-1",
    completion_window="24h",
    metadata={"a": "b"},
    request_hash="h1",
    in_progress_at_ms=NOW + 1000,
    errors=(),
    total=3,
    completed=1,
    failed=0,
)
CANCEL = BatchCancel(command_id="c2", batch_id="batch_1", tenant="acme", at_ms=NOW + 5000)
FILE_RECORD = FileRecord(
    file_id="file-1",
    tenant="acme",
    object=ObjectRef(key="files/acme/file-1", size_bytes=3, sha256="00"),
    filename="a.jsonl",
    purpose="batch",
    created_at_ms=NOW,
    expires_at_ms=NOW + 1_000_000,
)
KEY = ApiKeyRecord(
    key_id="key_1", tenant="acme", name="", secret_sha256="ab", hint="", created_at_ms=NOW
)


class Model:
    """A read model that is fed by hand."""

    def __init__(self, store: ReadModelStore) -> None:
        self.store = store
        self.queries = Queries(store.reader)
        self.offset = 0

    async def feed(self, *records: tuple[Topic, str, Record | None]) -> None:
        read = []
        for topic, key, record in records:
            read.append(ReadRecord(topic, 0, self.offset, NOW, key, record))
            self.offset += 1
        await self.store.apply(read, {(t.name, 0): self.offset for t in TOPICS}, NOW)

    async def batch(self) -> BatchSnapshot:
        found = await self.queries.batch("acme", "batch_1")
        assert found is not None
        return found

    async def file(self, now_ms: int = NOW) -> FileRecord | None:
        return await self.queries.file("acme", "file-1", now_ms)


def changed(record: Any, **changes: object) -> Any:
    return msgspec.structs.replace(record, **changes)


def status(**changes: object) -> tuple[Topic, str, Record | None]:
    return BATCH_STATUS, "batch_1", changed(SNAPSHOT, **changes)


def file(**changes: object) -> tuple[Topic, str, Record | None]:
    return FILE, "file-1", changed(FILE_RECORD, **changes)


@pytest.fixture(params=["memory", "disk"])
async def model(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Model]:
    path = None if request.param == "memory" else tmp_path / "g" / "read-model.sqlite"
    store = await ReadModelStore.open(path, identity="log", clock=ManualClock(NOW))
    yield Model(store)
    await store.close()


async def test_a_create_is_shown_as_validating(model: Model) -> None:
    await model.feed((BATCH_COMMAND, "batch_1", CREATE))
    batch = await model.batch()
    assert batch.status is BatchStatus.VALIDATING
    assert batch.created_at_ms == NOW // 1000 * 1000
    assert batch.expires_at_ms == batch.created_at_ms + 86_400_000


async def test_of_two_creates_with_one_id_the_first_in_the_log_wins(model: Model) -> None:
    other = changed(CREATE, request_hash="h2", metadata={})
    await model.feed((BATCH_COMMAND, "batch_1", CREATE), (BATCH_COMMAND, "batch_1", other))
    assert (await model.batch()).request_hash == "h1"


async def test_an_older_snapshot_never_replaces_a_newer_one(model: Model) -> None:
    await model.feed(status(revision=9, completed=3), status(revision=8, completed=2))
    assert (await model.batch()).completed == 3


async def test_a_create_read_after_its_snapshot_changes_nothing(model: Model) -> None:
    await model.feed(status(), (BATCH_COMMAND, "batch_1", CREATE))
    assert (await model.batch()).status is BatchStatus.IN_PROGRESS


async def test_a_cancel_shows_at_once_and_does_not_flicker(model: Model) -> None:
    cancel = (BATCH_COMMAND, "batch_1", CANCEL)
    await model.feed((BATCH_COMMAND, "batch_1", CREATE), cancel)
    shown = await model.batch()
    assert (shown.status, shown.cancelling_at_ms) == (BatchStatus.CANCELLING, CANCEL.at_ms)
    await model.feed(status())
    assert (await model.batch()) == changed(
        SNAPSHOT, status=BatchStatus.CANCELLING, cancelling_at_ms=CANCEL.at_ms
    )
    later = changed(CANCEL, command_id="c3", at_ms=CANCEL.at_ms + 9000)
    await model.feed((BATCH_COMMAND, "batch_1", later))
    assert (await model.batch()).cancelling_at_ms == CANCEL.at_ms


async def test_a_cancel_that_came_too_late_shows_the_end_and_keeps_the_time_seen(
    model: Model,
) -> None:
    ended = {"status": BatchStatus.COMPLETED, "revision": 7}
    await model.feed((BATCH_COMMAND, "batch_1", CANCEL))
    await model.feed(status(**ended, completed_at_ms=CANCEL.at_ms + 1))
    shown = await model.batch()
    assert (shown.status, shown.cancelling_at_ms) == (BatchStatus.COMPLETED, CANCEL.at_ms)
    await model.feed(status(**ended, completed_at_ms=CANCEL.at_ms - 1))
    assert (await model.batch()).cancelling_at_ms is None


async def test_a_cancel_by_another_tenant_is_not_shown(model: Model) -> None:
    await model.feed(status(), (BATCH_COMMAND, "batch_1", changed(CANCEL, tenant="rival")))
    assert (await model.batch()).status is BatchStatus.IN_PROGRESS


PAUSE = BatchPause(command_id="p1", batch_id="batch_1", tenant="acme", at_ms=NOW + 1000)
RESUME = BatchResume(command_id="r1", batch_id="batch_1", tenant="acme", at_ms=NOW + 2000)
CHANGE = BatchChange(
    command_id="h1",
    batch_id="batch_1",
    tenant="acme",
    at_ms=NOW + 3000,
    priority=7,
    expires_at_ms=SNAPSHOT.expires_at_ms + 60_000,
)


def command(record: Any, **changes: object) -> tuple[Topic, str, Record | None]:
    return BATCH_COMMAND, "batch_1", changed(record, **changes)


async def test_pause_and_change_show_at_once_and_do_not_flicker(model: Model) -> None:
    await model.feed((BATCH_COMMAND, "batch_1", CREATE), command(PAUSE), command(CHANGE))
    shown = await model.batch()
    assert (shown.status, shown.paused_at_ms) == (BatchStatus.VALIDATING, PAUSE.at_ms)
    assert (shown.priority, shown.expires_at_ms) == (7, CHANGE.expires_at_ms)
    await model.feed(status(commands=("c1",)))
    shown = await model.batch()
    assert (shown.paused_at_ms, shown.priority) == (PAUSE.at_ms, 7)
    folded = {"paused_at_ms": PAUSE.at_ms, "priority": 7, "commands": ("c1", "p1", "h1")}
    await model.feed(status(revision=6, expires_at_ms=CHANGE.expires_at_ms, **folded))
    assert (await model.batch()).priority == 7


async def test_commands_count_in_the_order_of_the_log_and_once(model: Model) -> None:
    await model.feed(status(), command(PAUSE), command(RESUME), command(PAUSE))
    assert (await model.batch()).paused_at_ms is None
    await model.feed(command(PAUSE, command_id="p2"))
    assert (await model.batch()).paused_at_ms == PAUSE.at_ms


async def test_a_command_read_after_the_snapshot_that_has_it_changes_nothing(model: Model) -> None:
    resumed = status(commands=("c1", "p1", "r1"))
    await model.feed(resumed, command(PAUSE))
    assert (await model.batch()).paused_at_ms is None
    await model.feed(command(RESUME))
    assert (await model.batch()).paused_at_ms is None


async def test_a_command_that_the_snapshot_forgot_is_not_taken_for_a_new_one(model: Model) -> None:
    # A snapshot names the latest commands only; the pause came before one of them.
    await model.feed(command(PAUSE), command(RESUME), status(commands=("r1",)))
    assert (await model.batch()).paused_at_ms is None
    await model.feed(command(CHANGE))
    assert ((await model.batch()).paused_at_ms, (await model.batch()).priority) == (None, 7)


async def test_rows_of_commands_go_when_the_batch_forgets_them_and_when_it_ends(
    model: Model,
) -> None:
    async def rows() -> int:
        (row,) = await model.store.reader.execute_fetchall("SELECT count(*) FROM controls")
        return int(row[0])

    many = [command(PAUSE, command_id=f"p{n}") for n in range(MAX_COMMANDS + 5)]
    latest = tuple(f"p{n}" for n in range(3, MAX_COMMANDS + 3))
    await model.feed(*many, status(commands=latest))
    assert await rows() == MAX_COMMANDS + 2, "three forgotten, two still to come"
    await model.feed(status(revision=9, status=BatchStatus.COMPLETED, completed_at_ms=NOW + 9))
    assert await rows() == 0


async def test_a_repeat_of_a_known_command_hides_nothing_that_is_still_to_come(
    model: Model,
) -> None:
    await model.feed(command(PAUSE), status(paused_at_ms=PAUSE.at_ms, commands=("c1", "p1")))
    await model.feed(command(RESUME), command(PAUSE))
    assert (await model.batch()).paused_at_ms is None


@pytest.mark.parametrize(
    "change",
    [
        {"priority": 101},
        {"expires_at_ms": CHANGE.at_ms},
        {"expires_at_ms": SNAPSHOT.created_at_ms + 8 * 86_400_000},
        {"tenant": "rival"},
    ],
)
async def test_a_change_that_the_controller_will_refuse_is_not_shown(
    model: Model, change: dict[str, object]
) -> None:
    await model.feed(status(), command(CHANGE, **change))
    assert await model.batch() == SNAPSHOT


async def test_a_command_that_comes_too_late_is_not_shown(model: Model) -> None:
    ended = status(revision=9, status=BatchStatus.COMPLETED, completed_at_ms=NOW + 9)
    await model.feed(command(PAUSE), ended, command(CHANGE))
    shown = await model.batch()
    assert (shown.paused_at_ms, shown.priority) == (None, 0)


async def test_a_cancel_is_the_last_word_over_a_pause(model: Model) -> None:
    await model.feed(status(), command(PAUSE), command(CANCEL))
    shown = await model.batch()
    assert (shown.status, shown.paused_at_ms) == (BatchStatus.CANCELLING, None)


async def test_a_pause_while_finalizing_is_not_shown_but_a_change_is(model: Model) -> None:
    await model.feed(status(status=BatchStatus.FINALIZING), command(PAUSE), command(CHANGE))
    shown = await model.batch()
    assert (shown.paused_at_ms, shown.priority) == (None, 7)


async def test_another_tenants_objects_do_not_exist(model: Model) -> None:
    await model.feed(status(), file())
    assert await model.queries.batch("rival", "batch_1") is None
    assert await model.queries.batch_place("rival", "batch_1") is None
    assert await model.queries.batches("rival", None, 10) == []
    assert await model.queries.file("rival", "file-1", NOW) is None
    assert await model.queries.file_place("rival", "file-1") is None


async def test_a_file_comes_back_as_it_was_written(model: Model) -> None:
    await model.feed(file())
    assert await model.file() == FILE_RECORD


async def test_an_expired_file_is_hidden_from_that_moment_on(model: Model) -> None:
    await model.feed(file())
    assert FILE_RECORD.expires_at_ms is not None
    assert await model.file(FILE_RECORD.expires_at_ms - 1) is not None
    assert await model.file(FILE_RECORD.expires_at_ms) is None


async def test_a_deleted_file_stays_hidden_when_its_first_record_is_repeated(model: Model) -> None:
    await model.feed(file(), file(deleted_at_ms=NOW + 1), file())
    assert await model.file() is None
    await model.feed((FILE, "file-1", None))
    assert await model.queries.ended_files(NOW + 1, 10) == []
    await model.feed(file())
    assert await model.file() is None
    # And the clean-up finds it again, which ends the repeat in the log.
    assert [f.file_id for f in await model.queries.ended_files(NOW + 1, 10)] == ["file-1"]


async def test_a_page_may_begin_behind_a_file_that_is_gone(model: Model) -> None:
    await model.feed(file(), (FILE, "file-1", None))
    assert await model.queries.file_place("acme", "file-1") == (NOW, "file-1")
    await model.store.forget_files(NOW)
    assert await model.queries.file_place("acme", "file-1") is None


async def test_bytes_of_an_ended_file_are_kept_while_a_batch_lives_on_it(model: Model) -> None:
    await model.feed(file(deleted_at_ms=NOW), status())
    assert await model.queries.ended_files(NOW, 10) == []
    await model.feed(
        status(status=BatchStatus.COMPLETED, completed_at_ms=NOW + 10, revision=6),
    )
    assert [f.file_id for f in await model.queries.ended_files(NOW, 10)] == ["file-1"]


async def test_an_ended_batch_is_cleaned_once(model: Model) -> None:
    await model.feed(status(status=BatchStatus.FAILED, failed_at_ms=NOW, revision=6))
    assert await model.queries.batches_to_clean(NOW - 1, 10) == []
    assert [b.batch_id for b in await model.queries.batches_to_clean(NOW, 10)] == ["batch_1"]
    await model.store.mark_cleaned("batch_1")
    assert await model.queries.batches_to_clean(NOW, 10) == []


async def test_a_revoked_key_never_comes_back(model: Model) -> None:
    await model.feed((ACCOUNT, "key_1", KEY))
    assert await model.queries.caller_of_key("ab") == ("acme", "key_1")
    revoked = changed(KEY, revoked_at_ms=NOW)
    await model.feed((ACCOUNT, "key_1", revoked), (ACCOUNT, "key_1", KEY))
    assert await model.queries.caller_of_key("ab") is None


@pytest.mark.parametrize("end", [s for s in BatchStatus if s.value.endswith("ed")])
def test_every_ended_status_has_its_time(end: BatchStatus) -> None:
    times = {f"{end.value}_at_ms": NOW + 7}
    assert ended_at_ms(changed(SNAPSHOT, status=end, **times)) == NOW + 7


events = st.lists(
    st.one_of(
        st.just((BATCH_COMMAND, "batch_1", CREATE)),
        st.just((BATCH_COMMAND, "batch_1", CANCEL)),
        st.integers(0, 4).map(lambda r: status(revision=r, completed=r)),
        st.just(status(revision=9, status=BatchStatus.CANCELLED, cancelled_at_ms=NOW + 9000)),
        st.just(file()),
        st.just(file(deleted_at_ms=NOW + 3)),
        st.just((ACCOUNT, "key_1", KEY)),
        st.just((ACCOUNT, "key_1", changed(KEY, revoked_at_ms=NOW))),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(events, st.randoms(), st.integers(1, 5))
async def test_records_repeated_shuffled_and_cut_into_any_polls_end_in_the_same_rows(
    fed: list[tuple[Topic, str, Record | None]], rng: Any, poll: int
) -> None:
    async def ends_as(records: list[tuple[Topic, str, Record | None]]) -> tuple[object, ...]:
        store = await ReadModelStore.open(None, identity="log", clock=ManualClock(NOW))
        model = Model(store)
        for start in range(0, len(records), poll):
            await model.feed(*records[start : start + poll])
        shown = (
            await model.queries.batch("acme", "batch_1"),
            await model.file(),
            await model.queries.caller_of_key("ab"),
        )
        await store.close()
        return shown

    repeated = [*fed, *fed]
    rng.shuffle(repeated)
    assert await ends_as(fed) == await ends_as(repeated)


_CONTROLS = [PAUSE, RESUME, CHANGE, changed(PAUSE, command_id="p2", at_ms=NOW + 4000)]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.permutations(_CONTROLS), st.integers(0, 4), st.integers(1, 3))
async def test_however_commands_and_snapshots_interleave_the_same_is_shown(
    data: st.DataObject, commands: list[Any], folded: int, poll: int
) -> None:
    """The controller has folded some of the commands; the rest are laid over what it said."""

    async def shown_after(records: list[tuple[Topic, str, Record | None]]) -> BatchSnapshot:
        store = await ReadModelStore.open(None, identity="log", clock=ManualClock(NOW))
        model = Model(store)
        for start in range(0, len(records), poll):
            await model.feed(*records[start : start + poll])
        shown = await model.batch()
        await store.close()
        bare: BatchSnapshot = changed(shown, revision=0, commands=())
        return bare

    in_log = [(BATCH_COMMAND, "batch_1", record) for record in commands]
    none_folded = await shown_after([status(), *in_log])
    before = await shown_after([status(), *in_log[:folded]])
    said = changed(before, revision=9, commands=("c1", *(c.command_id for c in commands[:folded])))
    # The snapshot may be read before, after or between the commands, some of them twice.
    at = data.draw(st.integers(0, 4))
    again = in_log[: data.draw(st.integers(0, 4))]
    mixed = [*in_log[:at], (BATCH_STATUS, "batch_1", said), *in_log[at:], *again]
    assert await shown_after(mixed) == none_folded


Reopen = Callable[..., Any]


@pytest.fixture
async def reopen(tmp_path: Path) -> AsyncIterator[Reopen]:
    opened: list[ReadModelStore] = []

    async def open_again(*, identity: str = "log", now_ms: int = NOW) -> ReadModelStore:
        if opened:
            await opened.pop().close()
        path = tmp_path / "read-model.sqlite"
        opened.append(await ReadModelStore.open(path, identity=identity, clock=ManualClock(now_ms)))
        return opened[0]

    yield open_again
    for store in opened:
        await store.close()


async def test_a_restart_goes_on_where_the_rows_end(reopen: Reopen) -> None:
    await Model(await reopen()).feed(status())
    store = await reopen(now_ms=NOW + AWAY_LIMIT_MS)
    assert store.positions() == {(t.name, 0): 1 for t in TOPICS}
    assert (await Model(store).batch()) == SNAPSHOT


@pytest.mark.parametrize(
    "change",
    [{"identity": "other"}, {"now_ms": NOW + AWAY_LIMIT_MS + 1}, {"now_ms": NOW - AWAY_LIMIT_MS}],
    ids=["another log", "away for longer than tombstones live", "the clock went back"],
)
async def test_rows_that_may_be_wrong_are_dropped(reopen: Reopen, change: dict[str, Any]) -> None:
    await Model(await reopen()).feed(status())
    store = await reopen(**change)
    assert store.positions() == {}
    assert await Queries(store.reader).batch("acme", "batch_1") is None


async def test_rows_of_other_code_are_dropped(
    reopen: Reopen, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Model(await reopen()).feed(status())
    monkeypatch.setattr("api.read_model.store.VERSION", "newer")
    assert (await reopen()).positions() == {}


async def test_a_failed_transaction_leaves_rows_and_positions_as_they_were(model: Model) -> None:
    await model.feed(status())

    async def fail() -> None:
        async with model.store.writing() as writer:
            await writer.execute("DELETE FROM batches")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        await fail()
    assert await model.batch() == SNAPSHOT


async def test_two_gateways_cannot_share_a_read_model(reopen: Reopen, tmp_path: Path) -> None:
    await reopen()
    with pytest.raises(ReadModelError, match="BACKHAUL_INSTANCE"):
        await ReadModelStore.open(
            tmp_path / "read-model.sqlite", identity="log", clock=ManualClock(NOW)
        )


async def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "read-model.sqlite"
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    store = await ReadModelStore.open(path, identity="log", clock=ManualClock(NOW))
    assert store.positions() == {}
    await store.close()


async def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReadModelError, match="can't be written to"):
        await ReadModelStore.open(
            tmp_path / "file" / "read-model.sqlite", identity="log", clock=ManualClock(NOW)
        )
