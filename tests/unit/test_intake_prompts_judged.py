"""Any mix of lines gets the verdict of a judge that knows nothing of how intake works."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streams.domain.intake.intake import Refused
from streams.domain.intake.lines import ENDPOINTS
from tests.support import intake_files as files

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: slug -> published version, model, variables of each version.
_KNOWN: dict[str, tuple[int | None, str | None, dict[int, set[str]]]] = {
    "greet": (2, None, {1: {"name"}, 2: {"name", "tone"}}),
    "chatty": (1, "other", {1: {"text"}}),
    "plain": (1, None, {1: set()}),
    "draft": (None, None, {1: {"name"}}),
    "elsewhere": (1, "gpt-9", {1: set()}),
}

_Fault = tuple[str, str]


def _bad(param: str, code: str = "invalid_request") -> _Fault:
    return code, f"body.{param}"


class _Judged:
    """What a body should become: its faults, in no order; else what it uses."""

    def __init__(self, body: dict[str, Any], url: str) -> None:
        self.faults: set[_Fault] = set()
        self.use: tuple[str, int] | None = None
        self.unused = False
        self.model = body.get("model")
        needed = ENDPOINTS[url].needed
        slug, form = body.get("prompt_slug"), body.get("prompt") if url == files.RESPONSES else None
        stream = body.get("stream")
        if stream is not None and stream is not False:
            self.faults.add(_bad("stream", "streaming_unsupported"))
        if slug is None and form is None:
            if body.get(needed) is None:
                self.faults.add(_bad(needed))
        else:
            self._prompt(body, slug, form, needed)
        if not isinstance(self.model, str) or not self.model:
            self.faults.add(_bad("model"))
        elif self.model not in files.MODELS:
            self.faults.add(_bad("model", "model_not_found"))

    def _prompt(self, body: dict[str, Any], slug: Any, form: Any, needed: str) -> None:
        if body.get(needed) is not None:
            self.faults.add(_bad(needed))
        if form is None:
            version, given = body.get("prompt_version"), body.get("variables")
            names = ("prompt_slug", "prompt_version", "variables")
        elif slug is not None:
            self.faults.add(_bad("prompt_slug"))
            return
        elif not isinstance(form, dict):
            self.faults.add(_bad("prompt"))
            return
        else:
            slug, version, given = form.get("id"), form.get("version"), form.get("variables")
            names = ("prompt.id", "prompt.version", "prompt.variables")
            if isinstance(version, str) and re.fullmatch("[1-9][0-9]*", version):
                version = int(version)
        if not isinstance(slug, str) or not _SLUG.fullmatch(slug):
            self.faults.add(_bad(names[0]))
            slug = None
        if version is not None and (type(version) is not int or version < 1):
            self.faults.add(_bad(names[1]))
            slug = None
        if given is not None and not isinstance(given, dict):
            self.faults.add(_bad(names[2]))
            slug = None
        if slug is not None:
            self._look_up(slug, version, given or {}, names)

    def _look_up(self, slug: str, version: Any, given: dict[str, Any], names: Any) -> None:
        if slug not in _KNOWN:
            self.faults.add(_bad(names[0]))
            return
        published, model, versions = _KNOWN[slug]
        if version is None and published is None:
            self.faults.add(_bad(names[0]))
            return
        number = published if version is None else version
        if number not in versions:
            self.faults.add(_bad(names[1]))
            return
        for name in versions[number]:
            if given.get(name) is None:
                self.faults.add(_bad(f"{names[2]}.{name}"))
        self.unused = not given.keys() <= versions[number]
        self.use = (slug, number)
        if self.model is None:
            self.model = model


_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.integers(), st.booleans(), st.text(max_size=4), st.just([{}])
)
_GOOD_VALUES = st.fixed_dictionaries(
    {"name": st.just("A"), "tone": st.just(1), "text": st.just("")}
)
_VARIABLES = st.one_of(
    _GOOD_VALUES,
    _GOOD_VALUES,
    st.dictionaries(st.sampled_from(["name", "tone", "text", "more"]), _VALUES),
    st.sampled_from([None, [], "x", 5]),
)
_SLUGS: st.SearchStrategy[Any] = st.sampled_from(
    [*_KNOWN, "greet", "plain", "gone", "nope", "a b", "", 7, None, []]
)
_VERSIONS: st.SearchStrategy[Any] = st.sampled_from(
    [None, None, 1, 2, 3, 0, -1, "1", "02", "x", 1.0, True, [], {}]
)


def _optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def _bodies(needed: str) -> st.SearchStrategy[dict[str, Any]]:
    good_use = {"prompt_slug": st.sampled_from(["greet", "chatty", "plain"]), "model": st.just("m")}
    model = st.sampled_from(["m", "m", "other", "gpt-9", "", None, 5])
    return st.one_of(
        st.fixed_dictionaries({"model": st.just("m"), needed: st.just("x")}),
        st.fixed_dictionaries({**good_use, "variables": _GOOD_VALUES}),
        st.fixed_dictionaries(
            {"model": model, "prompt_slug": _SLUGS},
            optional={"prompt_version": _VERSIONS, "variables": _VARIABLES},
        ),
        _optional(
            **{
                "model": model,
                needed: st.sampled_from([None, [], "x"]),
                "prompt_slug": _SLUGS,
                "prompt_version": _VERSIONS,
                "variables": _VARIABLES,
                "stream": st.sampled_from([None, False, True, 0]),
                "prompt": st.one_of(
                    _optional(id=_SLUGS, version=_VERSIONS, variables=_VARIABLES),
                    st.sampled_from([None, "greet", []]),
                ),
            }
        ),
        st.fixed_dictionaries(
            {
                "model": model,
                "prompt": st.fixed_dictionaries(
                    {"id": _SLUGS, "variables": _VARIABLES}, optional={"version": _VERSIONS}
                ),
            }
        ),
    )


@given(
    data=st.data(), url=st.sampled_from([files.CHAT, files.RESPONSES]), chunk=st.integers(1, 500)
)
def test_files_of_all_kinds_of_lines_get_the_verdict_of_an_independent_judge(
    data: st.DataObject, url: str, chunk: int
) -> None:
    bodies = data.draw(st.lists(_bodies(ENDPOINTS[url].needed), min_size=1, max_size=8))
    lines = [
        json.dumps({"custom_id": f"r{n}", "method": "POST", "url": url, "body": body}).encode()
        for n, body in enumerate(bodies)
    ]
    judged = [_Judged(body, url) for body in bodies]
    verdict = files.check(b"\n".join(lines), chunk=chunk, endpoint=url)
    if isinstance(verdict, Refused):
        assert [error.line for error in verdict.errors] == [
            n for n, one in enumerate(judged, 1) if one.faults
        ]
        for error in verdict.errors:
            assert error.line is not None
            assert (error.code, error.param) in judged[error.line - 1].faults
        return
    assert not any(one.faults for one in judged)
    uses = list(dict.fromkeys(one.use for one in judged if one.use is not None))
    assert [(pin.slug, pin.version) for pin in files.pins(verdict)] == uses
    assert files.row_pins(verdict) == [uses.index(j.use) + 1 if j.use else 0 for j in judged]
    assert [(p.slug, p.version, p.lines) for p in verdict.prompts] == [
        (*use, sum(j.use == use for j in judged)) for use in uses
    ]
    assert verdict.unused_variables == sum(j.unused for j in judged)
    assert verdict.models == tuple(dict.fromkeys(j.model for j in judged))


_PIECES = st.sampled_from(
    [
        files.literal("a"),
        files.literal("b"),
        files.line("c", prompt_slug="plain"),
        files.line("d", prompt_slug="greet", variables={"name": "é", "tone": 1}),
        files.line("d", prompt_slug="plain", variables={"x": 1}),
        files.line("e", prompt_slug="nope"),
        files.line("f", prompt_slug="plain").replace(b"plain", b"pl\\u0061in"),
        files.line("g", prompt_slug="plain", variables={"x": "y" * 300}),
        b"bad",
        b"\xff",
        b"\r",
        b"\n",
        b"\n\n\n",
        b" ",
        b"x" * 1500,
    ]
)


@given(
    data=st.one_of(
        st.lists(_PIECES, max_size=10).map(b"\n".join), st.lists(_PIECES, max_size=10).map(b"".join)
    ),
    chunk=st.integers(1, 700),
    max_lines=st.integers(1, 6),
)
def test_the_verdict_on_prompt_lines_does_not_depend_on_the_chunks(
    data: bytes, chunk: int, max_lines: int
) -> None:
    rules: dict[str, Any] = {"max_lines": max_lines, "max_line_bytes": 256}
    whole = files.check(data, **rules)
    assert files.check(data, chunk=1, **rules) == whole
    assert files.check(data, chunk=chunk, **rules) == whole
