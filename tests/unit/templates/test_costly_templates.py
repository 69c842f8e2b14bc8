"""Templates that ask for gigabytes, or for hours, are refused before they get them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

_MAX_MEMORY = 2 << 30
_REFUSED = (
    "it makes more than|it takes more than|it takes longer than|which no template may|"
    "a width that stands in a value|sum takes numbers only|names no part of a value|"
    "'lipsum' is undefined|recursion|nested too deeply"
)

COSTLY = [
    '{{ "{0:{1}}".format("x", 3000000000)|length }}',
    '{{ "{0:3000000000}".format("x") }}',
    '{{ "{0}{0}{0}{0}{0}".format("x" * 60000000) }}',
    '{{ "{a:200000000}".format_map({"a": 1}) }}',
    '{{ "%0*d"|format(3000000000, 1) }}',
    '{{ "%(a).2000000000f" % {"a": 1.5} }}',
    '{{ "%(a(b))3000000000d" % {"a(b)": 1} }}',
    '{{ "x".encode().ljust(3000000000) }}',
    '{{ "\\t".encode().expandtabs(200000000) }}',
    '{{ "\\t".expandtabs(2000000000) }}',
    '{{ (1).to_bytes(200000000, "big") }}',
    '{{ ("x" * 50000).translate({120: "y" * 50000}) }}',
    '{{ ("x" * 60000000).join(range(40)|map("string")) }}',
    '{{ range(40)|map("string")|join("x" * 60000000) }}',
    '{{ range(40)|map("center", 60000000)|list|length }}',
    "{{ lipsum(n=100000) }}",
    '{{ ("x" * 60000000)|list|sort }}',
    '{{ ("x" * 60000000).split("x") }}',
    '{{ ("x " * 30000000).split() }}',
    '{{ ("x\\r" * 30000000).splitlines() }}',
    '{{ ("x\\r" * 30000000)|indent(99999) }}',
    '{{ ("x y " * 9000000)|wordwrap(1, wrapstring="z" * 9000000) }}',
    '{{ ("x" * 30000000)|wordwrap(1) }}',
    '{{ ("<" * 9000000)|striptags }}',
    '{{ ("x" * 60000000)|pprint }}',
    "{{ [1]|batch(3000000000, 0)|list }}",
    '{{ [1]|batch(99999, "x" * 9999)|list }}',
    "{{ [1]|slice(slices=3000000000)|list }}",
    '{{ ("x" * 50000)|replace(new="y" * 50000, old="x") }}',
    '{{ {"a": [1, 2]}|tojson(indent=3000000000) }}',
    "{{ [0] * 9999999 }}",
    '{{ ("x" * -100000000000 ~ "x" * 60000000) * 60000000 }}',
    "{{ (1.5)|round(1000000000) }}",
    '{{ ("f" * 60000000)|int(base=16) // (("e" * 30000000)|int(base=16)) }}',
    "{{ ([[1]] * 1000000)|sum(start=[])|length }}",
    '{{ ("a" * 60000000).rfind("ab" ~ "a" * 30000000) }}',
    '{{ ("a" * 60000000).strip("b" * 60000000 ~ "a") }}',
    '{% set ns = namespace(x="a" * 60000000) %}{{ [ns.x[1:], ns.x[2:]] * 20 }}',
    '{% set t = "a" * 60000000 %}{% for i in range(9999) %}{% set x = t[1:] %}{% endfor %}',
    '{% set t = "a" * 60000000 %}{% macro m(n) %}{% set x %}b{{ t }}{% endset %}'
    "{{ m(n + 1) }}{{ x|length }}{% endmacro %}{{ m(0) }}",
    '{% macro m(n) %}{% set x = ("a" * 60000000).upper() %}{{ m(n + 1) }}{{ x|length }}'
    "{% endmacro %}{{ m(0) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for i in range(99) %}{% block b scoped %}{% for j in range(99999) %}{% endfor %}"
    "{% endblock %}{% endfor %}",
    "{{ " + "(" * 150 + "1" + " + x)" * 150 + " }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{% for i in x %}" * 30 + "{% endfor %}" * 30,
    "{% set t = 'a' * 60000000 %}{% for i in range(99999) if 'bc' in t %}{% endfor %}",
    "{% set d = {'a': 1, 'b': 2, 'c': 'x' * 60000000} %}{{ ('{0}' * 1000).format(d.items()) }}",
]
# What has few parts, of which each is in many places.
NESTED = "{% set ns = namespace(v=(1,)) %}{% for i in range(60) %}{% set ns.v = (ns.v, ns.v) %}"
NESTED += "{% endfor %}"
WAYS = [
    "{{ ns.v }}",
    "{{ ns }}",
    "{{ ns.v|string }}",
    "{{ ns.v|safe }}",
    "{{ ns.v|tojson }}",
    "{{ ns.v|upper }}",
    "{{ ns is upper }}",
    "{{ 'a' ~ ns.v }}",
    "{{ '%s' % (ns.v,) }}",
    "{{ '{}'.format(ns.v) }}",
    "{{ '{a}'.format(a=ns.v) }}",
    "{{ [ns.v]|join }}",
    "{{ [ns.v]|map('string')|list }}",
    "{{ [ns.v, ns.v]|unique|list }}",
    "{{ [ns.v, 1].index(ns.v) }}",
    "{{ {'a': 1}.get(ns.v) }}",
    "{{ {'a': 1}[ns.v] }}",
    "{{ {ns.v: 1} }}",
    "{{ ns.v in {'a': 1} }}",
    "{{ [(ns.v, 1)]|selectattr(0, 'eq', ns.v)|list }}",
    "{{ ns.v == (ns.v[0], ns.v[1]) }}",
    "{{ dict([(ns.v, 1)]) }}",
]
_PROGRAM = """
import json
import resource
import sys

from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.errors import FuriosaLLMError

resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
for template in json.load(sys.stdin):
    try:
        ColumnMapping(template=template).render({{"x": 1}})
    except FuriosaLLMError as error:
        print(json.dumps(str(error)), flush=True)
    else:
        print(json.dumps("rendered"), flush=True)
"""


def test_costly_templates_are_refused_in_little_memory() -> None:
    templates = [*COSTLY, *(NESTED + way for way in WAYS)]

    finished = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(memory=_MAX_MEMORY)],
        input=json.dumps(templates),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    messages = [json.loads(line) for line in finished.stdout.splitlines()]
    assert len(messages) == len(templates), finished.stderr
    told = dict(zip(templates, messages, strict=True))
    assert {key: text for key, text in told.items() if not re.search(_REFUSED, text)} == {}
