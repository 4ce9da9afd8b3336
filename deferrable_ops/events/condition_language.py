"""Parses a condition, for example ``orders & (payments | signoff)`` or ``at_least(2, orders, payments)``.

``&`` binds more tightly than ``|``, as in Python::

    any      := all ("|" all)*
    all      := term ("&" term)*
    term     := NAME | "(" any ")" | "at_least" "(" NUMBER ("," any)+ ")"
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, NoReturn

from deferrable_ops.events.conditions import AtLeast, Condition, Name
from deferrable_ops.exceptions import InputError

# The parser is recursive: it calls itself for each level of parentheses. So the number of levels needs a limit.
_MAX_NESTED_PARENTHESES: Final = 50
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_TOKEN: Final = re.compile(
    rf"\s*(?:(?P<name>{_NAME.pattern})|(?P<number>[0-9]+)|(?P<sign>&&|\|\||!=|==|.))", re.DOTALL
)
_NO_NEGATION: Final = (
    "a condition that became true must stay true when more events arrive; "
    "name only events that must arrive, and combine them with &, | and at_least(k, ...)"
)
# Words and signs that a condition must not contain, each with the reason for the error message.
_REFUSED: Final = {
    "not": f"'not' is not supported, because {_NO_NEGATION}",
    "!": f"'!' is not supported, because {_NO_NEGATION}",
    "~": f"'~' is not supported, because {_NO_NEGATION}",
    "-": f"'-' is not supported, because {_NO_NEGATION}",
    "^": f"'^' is not supported, because {_NO_NEGATION}",
    "!=": f"'!=' is not supported, because {_NO_NEGATION}",
    "and": "write & instead of 'and'",
    "or": "write | instead of 'or'",
    "&&": "write & instead of '&&'",
    "||": "write | instead of '||'",
    "==": "'==' is not supported; put comparisons into match= of the event",
    "{": "condition= cannot be a template, because it is parsed together with the DAG; write the event names",
}
_RESERVED: Final = frozenset({"and", "at_least", "not", "or"})


def check_names(names: Collection[str]) -> None:
    """Check the event names of a wait.

    :raises InputError: if there are no names, or if a name is not valid in a condition.
    """
    if not names:
        raise InputError(
            "events= is empty; name at least one event, for example events={'orders': KafkaEvent('orders')}"
        )
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(
                f"events= has the invalid name {name!r}; a name must begin with a letter or '_', followed by letters, "
                "digits, '_', '.' and '-'"
            )
        if name in _RESERVED:
            raise InputError(
                f"events= has the name {name!r}, which is reserved in condition=; choose another name"
            )


def parse_condition(text: str | None, names: Collection[str]) -> Condition:
    """Parse a condition.

    :param text: the condition. If `text` is None, the condition is true once an event of every name has been received.
    :param names: the event names that the condition may contain.
    :raises InputError: if `text` is not a condition, or if `text` contains an unknown name. The error message shows the
        position of the error in the condition.
    """
    check_names(names)
    if text is None:
        return _at_least(len(names), [Name(name) for name in names])
    if not isinstance(text, str):
        raise InputError(f"condition={text!r} must be a string, for example 'orders & (payments | signoff)'")
    return _Parser(text, names).parse()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


class _Parser:
    def __init__(self, text: str, names: Collection[str]) -> None:
        self._text = text
        self._names = names
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0

    def parse(self) -> Condition:
        condition = self._any()
        if self._peek().kind != "end":
            self._refuse(self._peek(), "expected & or | here")
        return condition

    def _any(self) -> Condition:
        terms = [self._all()]
        while self._take("|"):
            terms.append(self._all())
        return _at_least(1, terms)

    def _all(self) -> Condition:
        terms = [self._term()]
        while self._take("&"):
            terms.append(self._term())
        return _at_least(len(terms), terms)

    def _term(self) -> Condition:
        token = self._peek()
        if token.text == "at_least":
            return self._at_least_call()
        if self._take("("):
            condition = self._within(token)
            self._expect(")", "expected ')' here")
            return condition
        if token.kind != "name" or token.text in _REFUSED:
            self._refuse(token, "expected the name of an event, '(' or at_least(k, ...) here")
        self._next += 1
        if token.text not in self._names:
            self._refuse_name(token)
        return Name(token.text)

    def _within(self, opening: _Token) -> Condition:
        self._depth += 1
        if self._depth > _MAX_NESTED_PARENTHESES:
            self._refuse(
                opening,
                f"the parentheses have more than {_MAX_NESTED_PARENTHESES} nested levels; use fewer levels",
            )
        condition = self._any()
        self._depth -= 1
        return condition

    def _at_least_call(self) -> Condition:
        call = self._peek()
        self._next += 1
        self._expect("(", "write at_least(k, event, event, ...)")
        number = self._peek()
        if number.kind != "number" or len(number.text) > 9:
            self._refuse(
                number, "the first argument of at_least must be a number, as in at_least(2, a, b, c)"
            )
        self._next += 1
        terms: list[Condition] = []
        while self._take(","):
            terms.append(self._within(call))
        self._expect(")", "expected ',' or ')' here")
        return self._checked(call, int(number.text), terms)

    def _checked(self, call: _Token, count: int, terms: Sequence[Condition]) -> Condition:
        if count < 1:
            self._refuse(call, "at_least(0, ...) would always be true; write 1 or more")
        if count > len(terms):
            self._refuse(
                call,
                f"at_least({count}, ...) with {len(terms)} arguments can never be true; lower the number",
            )
        if len(set(terms)) < len(terms):
            self._refuse(call, "at_least(...) has the same argument twice; remove one of them")
        return _at_least(count, terms)

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, sign: str) -> bool:
        taken = self._peek().text == sign
        self._next += taken
        return taken

    def _expect(self, sign: str, otherwise: str) -> None:
        if not self._take(sign):
            self._refuse(self._peek(), otherwise)

    def _refuse_name(self, token: _Token) -> NoReturn:
        close = get_close_matches(token.text, self._names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        known = ", ".join(sorted(self._names))
        self._refuse(token, f"events= has no name {token.text!r}; {hint}Known names: {known}")

    def _refuse(self, token: _Token, otherwise: str) -> NoReturn:
        reason = _REFUSED.get(token.text, otherwise)
        where = "at the end" if token.kind == "end" else f"at {token.text!r}, character {token.at + 1}"
        raise InputError(f"condition={self._text!r} is invalid {where}: {reason}")


def _tokens(text: str) -> list[_Token]:
    found = [
        _Token(match.lastgroup or "", match[match.lastgroup or 0], match.start(match.lastgroup or 0))
        for match in _TOKEN.finditer(text.rstrip())
    ]
    return [*found, _Token("end", "", len(text))]


def _at_least(count: int, terms: Sequence[Condition]) -> Condition:
    return terms[0] if len(terms) == 1 else AtLeast(count, tuple(terms))
