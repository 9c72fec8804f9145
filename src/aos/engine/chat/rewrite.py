"""Checks a template's syntax tree, and puts counting and marking into it.

Names of filters that begin with ``@`` are this package's own; a template cannot write them.
"""

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from aos.errors import InvalidMessage

MAX_DEPTH = 48
MAX_LOOP_DEPTH = 6
MAX_BRANCHES = 64
MAX_INTEGER = 2**63 - 1

_ALLOWED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Macro, nodes.CallBlock),
    *(
        nodes.FilterBlock,
        nodes.With,
        nodes.Assign,
        nodes.AssignBlock,
        nodes.Break,
        nodes.Continue,
        nodes.Scope,
    ),
    *(nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword),
    *(nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice),
    *(nodes.Concat, nodes.Compare, nodes.Operand, nodes.BinExpr, nodes.UnaryExpr),
)


def template_error(message: str) -> InvalidMessage:
    """``chat.template``: the file's template cannot be used."""
    return InvalidMessage("chat.template", f"the chat template {message}", field="tokenizer.chat_template")


def check(tree: nodes.Template) -> None:
    """Refuse what is not known to be bounded. Raises InvalidMessage ``chat.template``."""
    stack: list[tuple[nodes.Node, int, int]] = [(tree, 0, 0)]
    while stack:
        node, depth, loops = stack.pop()
        if not isinstance(node, _ALLOWED):
            raise template_error(f"uses {type(node).__name__}, which is not supported")
        loops += isinstance(node, nodes.For)
        if depth > MAX_DEPTH or loops > MAX_LOOP_DEPTH:
            raise template_error("is nested too deeply")
        if isinstance(node, nodes.If) and len(node.elif_) > MAX_BRANCHES:
            raise template_error("has a condition with too many branches")
        if isinstance(node, nodes.For) and node.recursive:
            raise template_error("has a recursive loop, which is not supported")
        if isinstance(node, nodes.Call | nodes.Filter | nodes.Test) and (node.dyn_args or node.dyn_kwargs):
            raise template_error("unpacks arguments, which is not supported")
        if isinstance(node, nodes.Const) and isinstance(node.value, int) and abs(node.value) > MAX_INTEGER:
            raise template_error("has an integer of more than 64 bits")
        stack.extend((child, depth + 1, loops) for child in node.iter_child_nodes())


def _filter(node: nodes.Expr, name: str, *args: int) -> nodes.Filter:
    constants: list[nodes.Expr] = [nodes.Const(arg, lineno=node.lineno) for arg in args]
    return nodes.Filter(node, name, constants, [], None, None, lineno=node.lineno)


def _size(parts: list[nodes.Node]) -> int:
    count, stack = 0, list(parts)
    while stack:
        count += 1
        stack.extend(stack.pop().iter_child_nodes())
    return count


class Rewriter(NodeTransformer):
    """Own text is marked, loops and slices are counted, values are paid for before they are compared."""

    def __init__(self) -> None:
        self.macro_sizes: dict[str, int] = {}

    def visit_Const(self, node: nodes.Const) -> nodes.Expr:  # noqa: N802
        return _filter(node, "@own") if isinstance(node.value, str) else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:  # noqa: N802
        return _filter(nodes.Const(node.data, lineno=node.lineno), "@own")

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        size = _size([*node.body, *([node.test] if node.test else [])])
        self.generic_visit(node)
        if not isinstance(node.iter, nodes.Expr):
            raise TypeError("a loop over no expression")
        node.iter = _filter(node.iter, "@iterate", size)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:  # noqa: N802
        self._measure(node.name, node)
        self.generic_visit(node)
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.CallBlock:  # noqa: N802
        self._measure("caller", node)
        self.generic_visit(node)
        return node

    def _measure(self, name: str, node: nodes.Node) -> None:
        self.macro_sizes[name] = max(self.macro_sizes.get(name, 0), _size([node]))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "@concat")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        node.expr = self._paid(node.expr)
        for operand in node.ops:
            operand.expr = self._paid(operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Test:  # noqa: N802
        # A test may ask whether there is a value at all; only tests with arguments look into it.
        node.node = self._paid(node.node) if node.args else self._visited(node.node)
        node.args = [self._paid(arg) for arg in node.args]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:  # noqa: N802
        node.node = self._visited(node.node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filter(node.node, "@sliceable")
        if not isinstance(node.arg, nodes.Const):
            node.arg = self._visited(node.arg)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:  # noqa: N802
        node.key = node.key if isinstance(node.key, nodes.Const) else _filter(self._visited(node.key), "@key")
        node.value = self._visited(node.value)
        return node

    def _visited(self, node: nodes.Expr) -> nodes.Expr:
        visited = self.visit(node)
        if not isinstance(visited, nodes.Expr):
            raise TypeError("an expression was rewritten to none")
        return visited

    def _paid(self, node: nodes.Expr) -> nodes.Expr:
        return node if isinstance(node, nodes.Const) else _filter(self._visited(node), "@paid")
