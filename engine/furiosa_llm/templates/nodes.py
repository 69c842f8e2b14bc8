"""Puts the checks of `environment` into a template's syntax tree."""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

# Filters of our own, which stand where Jinja has no hook.
COUNT = "bounded_count"
JOIN = "bounded_join"
SLICE = "bounded_slice"
COMPARED = "bounded_compared"

# Tests that compare a value with others, or make a text of it.
COMPARISONS = frozenset(
    (
        "==",
        "!=",
        "<",
        "<=",
        ">",
        ">=",
        "eq",
        "equalto",
        "ne",
        "lt",
        "lessthan",
        "le",
        "gt",
        "greaterthan",
        "ge",
        "in",
        "lower",
        "upper",
    )
)


def bounded(template: nodes.Template) -> nodes.Template:
    """Returns a template with the checks in it."""
    checked: nodes.Template = _Bounding().visit(template)
    return checked


class _Bounding(NodeTransformer):
    """Puts a count into whatever can be repeated, and a check on what is compared or cut."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        counted = self._counted(node)
        if node.test is not None:  # is looked at before the body, which may not come at all
            node.test = nodes.And(nodes.Not(_count(node)), node.test, lineno=node.lineno)
        return counted

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), JOIN)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, SLICE) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if len(node.ops) == 1:
            operand = node.ops[0]
            is_search = operand.op in ("in", "notin")  # which takes as long as what is searched
            if _is_short(operand.expr) or (_is_short(node.expr) and not is_search):
                return node  # whatever is compared with a constant, that takes no time
        node.expr = _filtered(node.expr, COMPARED)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, COMPARED)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.name in COMPARISONS:
            node.node = _filtered(node.node, COMPARED)
            node.args = [_filtered(arg, COMPARED) for arg in node.args]
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not _is_short(node.key):
            node.key = _filtered(node.key, COMPARED)
        return node

    def _counted(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_count(node), lineno=node.lineno))
        return node  # type: ignore[no-any-return]


def _is_short(node: nodes.Expr) -> bool:
    """Tells whether an expression is a constant, or a list of constants."""
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, nodes.Const | nodes.TemplateData)


def _count(node: nodes.Node) -> nodes.Filter:
    """Returns an expression that counts, and is None."""
    return _filtered(nodes.Const(None, lineno=node.lineno), COUNT)


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
