"""A template is a program of someone else's: it can neither hang nor fill the memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.errors import ConfigError, InvalidRowError
from furiosa_llm.templates import work
from furiosa_llm.tokenization import Tokenizer
from tests.checkpoints import make_tokenizer

ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro m(d) %}{% if d %}{{ m(d - 1) }}{{ m(d - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{{ range(10**9)|list }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set x = namespace(v=3) %}{% for i in range(99) %}{% set x.v = x.v * x.v %}{% endfor %}",
    "{% set ns = namespace(d=0) %}{% block b %}{% set ns.d = ns.d + 1 %}{% if ns.d < 60 %}"
    "{{ self.b() }}{{ self.b() }}{% endif %}{% set ns.d = ns.d - 1 %}{% endblock %}",
]
HUGE = [
    "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{{ ([0] * 10**10)|length }}",
    "{% set x = namespace(v='x') %}{% for i in range(99) %}{% set x.v = x.v ~ x.v %}{% endfor %}",
    "{% set x = namespace(v='x') %}{% for i in range(99) %}{% set x.v = x.v + x.v %}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endset %}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (9999999999, 1) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'|center(10**10) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ ('x' * 9999)|replace('x', 'y' * 99999) }}",
    "{{ ('x' * 9999).replace('x', 'y' * 99999) }}",
    "{{ ('x' * 99999).join(['a'] * 99999) }}",
    "{{ ('x\\n' * 99999)|indent(99999) }}",
    "{{ (['a'] * 99999)|join('x' * 99999) }}",
    "{{ [1]|slice(10**10)|list }}",
    "{{ [1, 2]|tojson(indent=10**10) }}",
]
KEPT = [
    "{% set x %}{% for i in range(99) %}{{ 'x' * 999999 }}{% endfor %}{% endset %}",
    "{% set x %}{% for i in range(99) %}{{ 'x'|center(999999) }}{% endfor %}{% endset %}",
]
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ row.pop('v') }}",
    "{{ row.__init__.__globals__ }}",
    "{{ lipsum.__globals__.os }}",
    "{% set x = row.update({'v': 1}) %}",
    "{% include '/etc/passwd' %}",
    "{{ '\\ud800' }}",
]
COSTLY = "it takes more than|it makes more than|takes numbers up to|recursion|Range too big"


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "MAX_TEMPLATE_OPERATIONS", 2000)
    monkeypatch.setattr(work, "MAX_TEMPLATE_CHARACTERS", 1_000_000)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(path)
    return Tokenizer(str(path))


@pytest.mark.parametrize("template", ENDLESS + HUGE)
def test_a_template_that_never_ends_or_grows_is_an_error_of_its_row(template: str) -> None:
    started = time.process_time()

    with pytest.raises(InvalidRowError, match=f"the template fails on this row: .*({COSTLY})"):
        ColumnMapping(template=template).render({"v": 1})

    assert time.process_time() - started < 2


@pytest.mark.parametrize("template", ENDLESS + HUGE)
def test_so_is_a_chat_template(
    tokenizer: Tokenizer, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", template)

    with pytest.raises(InvalidRowError, match=f"the chat template refuses .*({COSTLY})"):
        tokenizer.render_chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_reaches_nothing_but_its_row(template: str) -> None:
    data: dict[str, object] = {"v": 1}

    with pytest.raises(InvalidRowError, match="the template fails on this row"):
        ColumnMapping(template=template).render(data)

    assert data == {"v": 1}


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_reaches_nothing_but_the_messages(
    tokenizer: Tokenizer, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = template.replace("row", "messages[0]")
    monkeypatch.setattr(tokenizer._tokenizer, "chat_template", template)

    with pytest.raises(InvalidRowError, match="the chat template refuses"):
        tokenizer.render_chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("template", KEPT)
def test_large_texts_are_counted_before_they_are_put_together(template: str) -> None:
    with pytest.raises(InvalidRowError, match="it makes more than 16 times 1,000,000 characters"):
        ColumnMapping(template=template).render({})


def test_a_template_that_is_slow_without_looping_much_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "MAX_TEMPLATE_SECONDS", 0.0)

    with pytest.raises(InvalidRowError, match="longer than 0 seconds"):
        ColumnMapping(template="{% for i in [1, 2] %}{% endfor %}").render({})


def test_an_ordinary_template_gives_what_jinja_gives() -> None:
    template = """
{%- macro bold(text) %}**{{ text }}**{% endmacro %}
{%- for item in items if item.n % 2 == 0 %}{{ loop.index }}: {{ bold(item.name ~ '!') }}
{{ "%05.1f" % item.n }} {{ '{:>4}'.format(item.n) }} {{ item.name|center(9) }}|{{ 'a' * 3 }}
{%- else %}nothing{% endfor %}
{%- set joined %}{% for i in range(3) %}{{ i }}{% endfor %}{% endset %}
{{ joined }} {{ items|map(attribute='name')|join(', ') }} {{ 2 ** 10 }} {{ [1] + [2] }} {{ 7 * 6 }}
{{ "a-b"|replace("-", "+") }} {{ "x\ny"|indent(2) }} {{ ",".join(["p", "q"]) }} {{ 1 ~ none ~ 2 }}
{% for item in items %}{{ item.name.strip('n')|truncate(3) }}{{ loop.cycle(1, 2) }}{% endfor %}
{{ items|map(attribute='n')|map('string')|join }} {{ items|tojson(indent=2) }} {{ [3]|last }}
"""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    data: dict[str, object] = {"items": [{"n": n, "name": f"n{n}"} for n in range(5)]}
    expected = ImmutableSandboxedEnvironment(keep_trailing_newline=True).from_string(template)

    assert ColumnMapping(template=template).render(data) == expected.render(data)


@pytest.mark.parametrize(
    ("template", "refused"),
    [
        ("{{ v.bit_length() }}", "it calls 'bit_length' of type int"),
        ("{{ 'x'.encode() }}", "it calls 'encode' of type str"),
        ("{{ 'x'|urlize }}", "it uses the filter 'urlize'"),
    ],
)
def test_what_is_not_listed_is_refused_by_name(template: str, refused: str) -> None:
    with pytest.raises(InvalidRowError, match=f"{refused}, which no template may"):
        ColumnMapping(template=template).render({"v": 1})


def test_chats_of_the_embedded_model_are_rendered_as_before() -> None:
    tokenizer = Tokenizer(str(Path(__file__).parents[3] / "samples" / "tiny-llama"))

    text = tokenizer.render_chat([{"role": "user", "content": "What is 2 + 3?"}])

    assert text == "<s><|user|>What is 2 + 3?<|assistant|>"


def test_a_call_that_fails_in_its_own_way_is_an_error_of_the_row() -> None:
    columns = ColumnMapping(template="{% set c = cycler(*tags) %}{{ c.next() }}")

    assert columns.render({"tags": ["a"]}) == "a"
    with pytest.raises(InvalidRowError, match="at least one item"):
        columns.render({"tags": []})


def test_a_constant_that_python_refuses_is_told() -> None:
    with pytest.raises(ConfigError, match="constant of no use"):
        ColumnMapping(template=f"{{{{ {'9' * 5000} }}}}")
    with pytest.raises(InvalidRowError, match="unhashable"):
        ColumnMapping(template="{{ {[]: 1} }}").render({})
