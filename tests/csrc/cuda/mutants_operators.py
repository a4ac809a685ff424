"""The mutants of a CUDA source: each changes one place of its text, by a rule that knows the kernels' idioms.

Left alone are comments, preprocessor lines and what only nvcc sees, static assertions, and loops over a constant number
of array elements, whose mutants the compiler or the emulator's bounds catch at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    code: str  # the line, stripped
    operator: str
    column: int  # in the stripped line
    before: str
    after: str
    start: int  # of `before` in the source

    def apply(self, source: str) -> str:
        end = self.start + len(self.before)
        assert source[self.start : end] == self.before, f"{self.file} changed"
        return source[: self.start] + self.after + source[end:]

    @property
    def change(self) -> str:
        return f"{self.before.strip()} -> {self.after.strip() or 'nothing'}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.operator}: {self.change}    in: {self.code}"


# Span of the match and what takes its place.
Edit = tuple[int, int, str]
HIDDEN = [
    r"//[^\n]*",
    r'"[^"\n]*"',
    r"#ifdef __CUDACC__\n.*?#endif",
    r"^ *#[^\n]*",
    r"\bstatic_assert\((?:[^;]|\n)*?;",
    r"\b__launch_bounds__\([^)]*\)",
    r"\[k\w+ / \d+\]",
    # for (int i = 0; i < kWidth; ++i)
    r"\bfor \(int (\w+) = [^;]*; \1 < (?:[\w:<>]*\bk[A-Z]\w*|\d+)(?: [/-] \w+)?; (?:\+\+\1|\1 \+= \w+)\)",
]


def visible(source: str) -> str:
    """The source with spaces where nothing is mutated."""
    for pattern in HIDDEN:
        source = re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), source, flags=re.M | re.S)
    return source


def function_span(code: str, name: str) -> tuple[int, int]:
    """From the line that defines a function to its closing brace."""
    found = re.search(rf"^[^\n]*\b{name}\([^;{{]*\) (?:const )?\{{", code, flags=re.M)
    assert found is not None, f"no function {name}"
    return found.start(), _closing(code, found.end() - 1)


def _closing(code: str, opening: int) -> int:
    """The end of what opens at `opening`."""
    depth = 0
    for i in range(opening, len(code)):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(code[i], 0)
        if depth == 0:
            return i + 1
    raise ValueError("unbalanced")


def _arguments(code: str, opening: int) -> tuple[list[str], int]:
    """What stands between the commas in the parentheses that open at `opening`, and where they end."""
    end = _closing(code, opening)
    found, start = [], opening + 1
    while start < end:
        i = start
        while i < end - 1 and code[i] != ",":
            i = _closing(code, i) if code[i] in "([{" else i + 1
        found.append(code[start:i].strip())
        start = i + 1
    return found, end


def _replaced(pattern: str, *after: str) -> Callable[[str], Iterator[Edit]]:
    def edits(code: str) -> Iterator[Edit]:
        for match in re.finditer(pattern, code, flags=re.M):
            for each in after:
                yield match.start(), match.end(), match.expand(each)

    return edits


def _swapped(pattern: str, table: dict[str, str]) -> Callable[[str], Iterator[Edit]]:
    def edits(code: str) -> Iterator[Edit]:
        for match in re.finditer(pattern, code, flags=re.M):
            yield match.start(1), match.end(1), table[match[1]]

    return edits


def _number(pattern: str, change: Callable[[str], str]) -> Callable[[str], Iterator[Edit]]:
    """Group 1 of the pattern, changed."""

    def edits(code: str) -> Iterator[Edit]:
        for match in re.finditer(pattern, code, flags=re.M):
            yield match.start(1), match.end(1), change(match[1])

    return edits


def _calls(names: str, replace: Callable[[list[str]], list[str]]) -> Callable[[str], Iterator[Edit]]:
    """Calls of a function by what `replace` makes of their arguments."""

    def edits(code: str) -> Iterator[Edit]:
        for match in re.finditer(rf"(?<![\w.])(?:{names})\(", code):
            arguments, end = _arguments(code, match.end() - 1)
            for after in replace(arguments):
                yield match.start(), end, after

    return edits


def _guards(code: str) -> Iterator[Edit]:
    for match in re.finditer(r"\b(?:if|while) \(", code):
        condition = match.end(), _closing(code, match.end() - 1) - 1
        if " = " in code[slice(*condition)]:  # a declaration
            continue
        if match[0].startswith("if"):
            yield *condition, "true"
        yield *condition, "false"


def _flat(code: str) -> Iterator[Edit]:
    """swizzled<kBytes>(row, chunk) as if rows lay as they are."""
    for match in re.finditer(r"\bswizzled<(\w+)>\(", code):
        (row, chunk), end = _arguments(code, match.end() - 1)
        yield match.start(), end, f"(({row}) * {match[1]} + ({chunk}) * 16)"


def _halved(number: str) -> str:
    return f"{int(number.rstrip('u'), 0) >> 1:#x}" + "u" * number.endswith("u")


ASSIGNMENT_OR_CALL = (
    r"^ *((?:[\w:.]+(?:\[[^\]\n]*\])* = [^\n]*"
    r"|(?!return|using|static|constexpr|__sync|ptx::cp_async|ptx::wgmma_[wcf]|ptx::fence)[\w:.]+(?:<[^;\n]*>)?\([^\n]*\));)$"
)
RELATIONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
OPERATORS: dict[str, Callable[[str], Iterator[Edit]]] = {
    "barrier": _replaced(r"__sync(?:threads|warp)\(\);", ";"),
    "wait": _replaced(r"ptx::(cp_async|wgmma)_wait<([^>]+)>\(([^;]*)\);", ";", r"ptx::\1_wait<\2 + 1>(\3);"),
    "commit": _replaced(r"ptx::(?:cp_async|wgmma)_commit\(\);", ";"),
    "fence": _replaced(r"ptx::(?:fence_proxy_async|wgmma_fence)\([^;]*\);", ";"),
    "swizzle": _flat,
    "xor": _replaced(r" \^ ", " + 0 * "),
    "bound": _swapped(r"(?<=[\w)\]]) (<|<=|>|>=|==|!=) (?=[\w(*-])", RELATIONS),
    "one": _replaced(r" [+-] 1\b(?!\.)", ""),
    "sum": _swapped(r"(?<=[\w)\]]) ([+-]) (?=(?!1\b(?!\.))[\w(*])", {"+": "-", "-": "+"}),
    "compound": _swapped(r"^ *[\w\[\].]+ ([+|&^]=) ", {"+=": "=", "|=": "=", "&=": "=", "^=": "="}),
    "product": _swapped(r"(?<=[\w)\]]) ([*/%]) (?=[A-Za-z(])", {"*": "+", "/": "%", "%": "/"}),
    "constant": _number(r" [*/%] (\d+)\b(?!\.)", lambda n: str(2 * int(n))),
    "shift": _number(r" (?:>>|<<) (\d+)\b", lambda n: str(int(n) + 1)),
    "mask": _number(r"(?: & |[(, ](?=0x))(0x[0-9a-f]+u?|\d+)\b", _halved),
    "union": _replaced(r" & \(", " | ("),
    "float": _number(r"(?<![\w.])(\d+\.\d*(?:e-?\d+)?f)\b", lambda n: f"({n} + 1.0f)"),
    "sign": _replaced(r"(?<=[(,=\[])( ?)-(?=[A-Za-z])", r"\1"),
    "least": _calls(r"(?:std::)?(?:min|max)(?:<\w+>)?|fminf|fmaxf", lambda a: [f"({each})" for each in a]),
    "term": _calls(r"__fadd_rn|__fmul_rn|__fdiv_rn", lambda a: [f"({a[0]})"]),
    "rounding": _calls(r"rintf", lambda a: [f"truncf({a[0]})"]),
    "call": _calls(r"__frcp_rn|__fsqrt_rn|fabsf", lambda a: [f"({a[0]})"]),
    "guard": _guards,
    "choice": _replaced(r"(?<=[\w)\]]) \? ", " || true ? ", " && false ? "),
    "statement": _number(ASSIGNMENT_OR_CALL, lambda statement: ";"),
    "logic": _swapped(r"(?<=[\w)\]]) (&&|\|\|) ", {"&&": "||", "||": "&&"}),
}  # fmt: skip


def mutants(file: str, source: str, but: tuple[str, ...] = ()) -> list[Mutant]:
    """All mutants of a source, in its order; none in the functions `but`."""
    code = visible(source)
    for name in but:
        start, end = function_span(code, name)
        code = code[:start] + re.sub(r"[^\n]", " ", code[start:end]) + code[end:]
    made = []
    for operator, edits in OPERATORS.items():
        for start, end, after in edits(code):
            first = source.rfind("\n", 0, start) + 1
            text = source[first : source.find("\n", start)]
            indent = len(text) - len(text.lstrip())
            line = source.count("\n", 0, start) + 1
            column = start - first - indent
            made.append(Mutant(file, line, text.strip(), operator, column, source[start:end], after, start))
    return sorted(made, key=lambda m: (m.start, m.operator, m.after))
