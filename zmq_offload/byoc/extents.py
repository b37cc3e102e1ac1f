"""Exact arithmetic with symbolic extents: sums of products of symbols, with floor divisions.

TVM simplifies such expressions, too, but it does not compare or divide products of symbols, which shapes are full of:
`(B*T*64) / (T*64)`. Symbols are extents, and so at least 1, but for those that count what a run keeps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import tvm_ffi
from tvm import ir, relax, tirx

Extent: TypeAlias = int | ir.Expr
"""A number, or an expression of symbols in 64 bits."""

Terms: TypeAlias = dict[tuple[int, ...], int]
"""A sum: for each product of atoms, by their places in `_ATOMS`, its factor. The empty product is the constant."""


BINARY = (tirx.Add, tirx.Sub, tirx.Mul, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max)


class _Atoms:
    """What sums are made of: symbols, floor divisions, and whatever else is opaque. Each has a place."""

    def __init__(self) -> None:
        self.exprs: list[ir.Expr] = []
        self._places: dict[int, list[int]] = {}

    def place(self, expr: ir.Expr) -> int:
        same = self._places.setdefault(tvm_ffi.structural_hash(expr, map_free_vars=False), [])
        for place in same:
            if tvm_ffi.structural_equal(self.exprs[place], expr):
                return place
        self.exprs.append(expr)
        same.append(len(self.exprs) - 1)
        return same[-1]


class Extents:
    """Arithmetic for the extents of one model."""

    def __init__(self) -> None:
        self._atoms = _Atoms()
        self._assumed: list[Terms] = []
        self._counts: set[str] = set()

    def count(self, name: str) -> tirx.Var:
        """A new symbol for a number that only the run tells, and that may be 0."""
        self._counts.add(name)
        return tirx.Var(name, "int64")

    def assume(self, extent: Extent, least: int = 0) -> None:
        """Take for granted that an extent of a tensor is at least `least`: the model does not run otherwise."""
        terms = self._difference(extent, least)
        known = self._least(terms)
        if known is not None and known >= 0:
            return
        self._assumed.append(terms)
        above = {product: factor for product, factor in terms.items() if product}
        if len(above) == 1:
            ((product, factor),) = above.items()
            atom = self._atoms.exprs[product[0]]
            if len(product) == 1 and factor == 1 and isinstance(atom, tirx.FloorDiv):
                # floor(a/b) >= c if, and only if, a >= b*c.
                self.assume(self.normal(atom.a + self.product([terms.get((), 0), atom.b])))

    def normal(self, value: Extent) -> Extent:
        """The normal form: equal sums have the same."""
        return self._expr(self._terms(value))

    def equal(self, a: Extent, b: Extent) -> bool:
        """Whether two extents are equal whatever the symbols are."""
        return not self._difference(a, b)

    def at_least(self, a: Extent, b: Extent) -> bool:
        """Whether `a >= b` whatever the symbols are."""
        least = self._least(self._difference(a, b))
        return least is not None and least >= 0

    def differ(self, a: Extent, b: Extent) -> bool:
        """Whether two extents differ whatever the symbols are."""
        difference = self._difference(a, b)
        negative = {product: -factor for product, factor in difference.items()}
        return any((least := self._least(terms)) is not None and least > 0 for terms in (difference, negative))

    def product(self, values: Sequence[Extent]) -> Extent:
        result: Terms = {(): 1}
        for value in values:
            result = _times(result, self._terms(value))
        return self._expr(result)

    def quotient(self, a: Extent, b: Extent) -> Extent | None:
        """`a / b` if that is a sum again; None otherwise."""
        dividend, divisor = self._terms(a), self._terms(b)
        if len(divisor) == 1:
            ((product, factor),) = divisor.items()
            result: Terms = {}
            for term, count in dividend.items():
                rest = Counter(term)
                rest.subtract(product)
                if count % factor or any(n < 0 for n in rest.values()):
                    return None
                result[tuple(sorted(rest.elements()))] = count // factor
            return self._expr(result)
        # A divisor of several terms divides if the sum is it times one product: (T+1)*64 by T+1.
        if len(dividend) != len(divisor):
            return None
        ours, theirs = (sorted(terms, key=lambda t: (len(t), t)) for terms in (dividend, divisor))
        first = self.quotient(self._expr({ours[-1]: dividend[ours[-1]]}), self._expr({theirs[-1]: divisor[theirs[-1]]}))
        return first if first is not None and _times(self._terms(first), divisor) == dividend else None

    def floor_div(self, a: Extent, b: int) -> Extent:
        return self._expr(self._divided(self._terms(a), b))

    def linear(self, value: Extent) -> tuple[int, tirx.Var, int] | None:
        """`(a, V, b)` if the extent is `a*V + b` with one symbol V and a > 0."""
        terms = dict(self._terms(value))
        rest = terms.pop((), 0)
        if len(terms) != 1:
            return None
        ((product, factor),) = terms.items()
        atom = self._atoms.exprs[product[0]]
        return (factor, atom, rest) if len(product) == 1 and factor > 0 and isinstance(atom, tirx.Var) else None

    def symbols(self, value: Extent) -> list[tirx.Var]:
        """The symbols of an extent, in the order in which they appear."""
        return list(relax.analysis.tir_vars_in_type(relax.ShapeType([expression(value)])))

    def multiple_needed(self, a: Extent, b: Extent) -> dict[str, int] | None:
        """For which divisor of the symbols two extents become equal; None if none of 2 to 128 helps."""
        names = {str(s.name) for value in (a, b) for s in self.symbols(value)}
        for size in (2, 4, 8, 16, 32, 64, 128):
            if self.equal(scaled(a, size), scaled(b, size)):
                return dict.fromkeys(sorted(names), size)
        return None

    def text(self, value: Extent) -> str:
        """An extent as a person writes it: 8*H, floor((T+1)/2)."""
        terms = self._terms(value)
        shown = []
        for product, factor in sorted(terms.items(), key=lambda term: (-len(term[0]), term[0])):
            names = [self._atom_text(self._atoms.exprs[place]) for place in product]
            shown.append("*".join([*([str(factor)] if factor != 1 or not names else []), *names]))
        return "+".join(shown).replace("+-", "-") or "0"

    def _atom_text(self, atom: ir.Expr) -> str:
        if isinstance(atom, tirx.Var):
            return str(atom.name)
        if isinstance(atom, tirx.FloorDiv):
            above = self.text(atom.a)
            above = f"({above})" if "+" in above or "-" in above else above
            return f"floor({above}/{self.text(atom.b)})"
        if isinstance(atom, tirx.Min | tirx.Max):
            return f"{type(atom).__name__.lower()}({self.text(atom.a)}, {self.text(atom.b)})"
        return "".join(str(atom).replace("T.int64", "").split())

    def _difference(self, a: Extent, b: Extent) -> Terms:
        return _plus(self._terms(a), {product: -factor for product, factor in self._terms(b).items()})

    def _least(self, terms: Terms, steps: int = 4) -> int | None:
        """A lower bound; None if none is found. So many quotients are replaced by bounds of theirs."""
        found = [
            self._least_of_terms(terms),
            self._least_of_quotients(terms, steps),
            self._least_of_minima(terms, steps),
        ]
        alike = [extent for extent in self._assumed if extent.keys() - {()} == terms.keys() - {()}]
        found += [self._least_of_terms(_plus(terms, {p: -f for p, f in extent.items()})) for extent in alike]
        return max((bound for bound in found if bound is not None), default=None)

    def _least_of_quotients(self, terms: Terms, steps: int) -> int | None:
        """A lower bound by `(a-b+1)/b <= floor(a/b) <= a/b`: H - 2*floor(H/2) is not negative."""
        for product, factor in terms.items() if steps else ():
            for index, place in enumerate(product):
                atom = self._atoms.exprs[place]
                if not isinstance(atom, tirx.FloorDiv) or not isinstance(atom.b, tirx.IntImm):
                    continue
                others = product[:index] + product[index + 1 :]
                if any((self._atom_least(self._atoms.exprs[other]) or 0) < 1 for other in others):
                    continue
                under = int(atom.b)
                rest = {p: f * under for p, f in terms.items() if p != product}
                above = self._terms(atom.a) if factor < 0 else _plus(self._terms(atom.a), {(): 1 - under})
                bound = self._least(_plus(rest, _times({others: factor}, above)), steps - 1)
                return None if bound is None else -(-bound // under)
        return None

    def _least_of_minima(self, terms: Terms, steps: int) -> int | None:
        """A lower bound by `min(a, b) <= a` and `min(a, b) <= b`: N - min(300, N) is not negative."""
        for product, factor in terms.items() if steps else ():
            atom = self._atoms.exprs[product[0]] if len(product) == 1 else None
            if factor < 0 and isinstance(atom, tirx.Min):
                rest = {p: f for p, f in terms.items() if p != product}
                sides = [_plus(rest, _times({(): factor}, self._terms(side))) for side in (atom.a, atom.b)]
                return max((b for s in sides if (b := self._least(s, steps - 1)) is not None), default=None)
        return None

    def _least_of_terms(self, terms: Terms) -> int | None:
        total = 0
        for product, factor in terms.items():
            bounds = [self._atom_least(self._atoms.exprs[place]) for place in product]
            if factor < 0 and product:
                return None
            if any(bound is None or bound < 0 for bound in bounds):
                return None
            total += factor * math.prod(bound for bound in bounds if bound is not None)
        return total

    def _atom_least(self, atom: ir.Expr) -> int | None:
        if isinstance(atom, tirx.Var):
            return 0 if str(atom.name) in self._counts else 1
        if isinstance(atom, tirx.FloorDiv) and isinstance(atom.b, tirx.IntImm):
            least = self._least(self._terms(atom.a))
            return None if least is None else least // int(atom.b)
        if isinstance(atom, tirx.Min | tirx.Max):
            both = [self._least(self._terms(side)) for side in (atom.a, atom.b)]
            known = [bound for bound in both if bound is not None]
            if isinstance(atom, tirx.Max):
                return max(known) if known else None
            return min(known) if len(known) == 2 else None
        if isinstance(atom, tirx.Select):
            both = [self._least(self._terms(side)) for side in (atom.true_value, atom.false_value)]
            known = [bound for bound in both if bound is not None]
            return min(known) if len(known) == 2 else None
        return None

    def _terms(self, value: Extent) -> Terms:
        if isinstance(value, int):
            return {(): value} if value else {}
        if isinstance(value, tirx.IntImm):
            return self._terms(int(value))
        if isinstance(value, tirx.Add):
            return _plus(self._terms(value.a), self._terms(value.b))
        if isinstance(value, tirx.Sub):
            return self._difference(value.a, value.b)
        if isinstance(value, tirx.Mul):
            return _times(self._terms(value.a), self._terms(value.b))
        if isinstance(value, tirx.FloorDiv) and isinstance(value.b, tirx.IntImm) and int(value.b) < 0:
            # TVM writes floor(-a/2) as floor(a/-2).
            return self._divided(self._difference(0, value.a), -int(value.b))
        if isinstance(value, tirx.FloorDiv | tirx.FloorMod) and isinstance(value.b, tirx.IntImm) and int(value.b) > 0:
            above, below = self._terms(value.a), int(value.b)
            whole = self._divided(above, below)
            if isinstance(value, tirx.FloorDiv):
                return whole
            return _plus(above, {product: -factor * below for product, factor in whole.items()})
        if isinstance(value, tirx.Cast) and str(value.ty.dtype) == "int64":
            return self._terms(value.value)
        if isinstance(value, tirx.Min | tirx.Max):
            a, b = self.normal(value.a), self.normal(value.b)
            for one, other in ((a, b), (b, a)):
                if self.at_least(one, other):
                    return self._terms(one if isinstance(value, tirx.Max) else other)
            value = type(value)(expression(a), expression(b))
        return {(self._atoms.place(value),): 1}

    def _divided(self, terms: Terms, by: int) -> Terms:
        """The floor of a sum over a number: what `by` divides is taken out, the rest is an atom."""
        whole = {product: factor // by for product, factor in terms.items() if factor // by and factor % by == 0}
        rest = {product: factor for product, factor in terms.items() if factor % by}
        constant = rest.get((), 0)
        if abs(constant) >= by or constant < 0:
            whole = _plus(whole, {(): constant // by})
            rest[()] = constant % by
        rest = {product: factor for product, factor in rest.items() if factor}
        if set(rest) <= {()}:  # less than one
            return whole
        # floor(6x/4) is floor(3x/2), and floor(floor(x/a)/b) is floor(x/(a*b)).
        common = math.gcd(by, *(factor for product, factor in rest.items() if product))
        if common > 1:
            constant = rest.pop((), 0)
            rest = {product: factor // common for product, factor in rest.items()}
            if constant // common:
                rest[()] = constant // common
            by //= common
            if by == 1:
                return _plus(whole, rest)
        products = [product for product in rest if product]
        if len(products) == 1 and len(products[0]) == 1 and rest[products[0]] == 1:
            inner = self._atoms.exprs[products[0][0]]
            if isinstance(inner, tirx.FloorDiv) and isinstance(inner.b, tirx.IntImm):
                under = int(inner.b)
                above = _plus(self._terms(inner.a), {(): rest.get((), 0) * under})
                return _plus(whole, self._divided(above, by * under))
        atom = tirx.FloorDiv(expression(self._expr(rest)), tirx.IntImm("int64", by))
        return _plus(whole, {(self._atoms.place(atom),): 1})

    def _expr(self, terms: Terms) -> Extent:
        """The sum as an expression; a number if it is one."""
        constant = terms.get((), 0)
        products = sorted((p for p in terms if p), key=lambda p: (-len(p), p))
        if not products:
            return constant
        total: ir.Expr | None = None
        for product in products:
            value = self._atoms.exprs[product[0]]
            for place in product[1:]:
                value = tirx.Mul(value, self._atoms.exprs[place])
            if terms[product] != 1:
                value = tirx.Mul(value, tirx.IntImm("int64", terms[product]))
            total = value if total is None else tirx.Add(total, value)
        return tirx.Add(total, tirx.IntImm("int64", constant)) if constant else total


def expression(value: Extent) -> ir.Expr:
    """An extent as an expression, also if it is a number."""
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def scaled(value: Extent, size: int) -> Extent:
    """The extent with a multiple of each symbol in its place."""
    if isinstance(value, tirx.Var):
        return value * size
    if isinstance(value, BINARY):
        return type(value)(expression(scaled(value.a, size)), expression(scaled(value.b, size)))
    return value


def _plus(a: Terms, b: Terms) -> Terms:
    total = dict(a)
    for product, factor in b.items():
        total[product] = total.get(product, 0) + factor
    return {product: factor for product, factor in total.items() if factor}


def _times(a: Terms, b: Terms) -> Terms:
    result: Terms = {}
    for one, m in a.items():
        for other, n in b.items():
            product = tuple(sorted((*one, *other)))
            result[product] = result.get(product, 0) + m * n
    return {product: factor for product, factor in result.items() if factor}


def fraction_of(value: float) -> Fraction | None:
    """A scale that multiplies extents exactly in float32, such as 2.0 or 0.25; None for others."""
    found = Fraction(value) if math.isfinite(value) else None
    return found if found is not None and found.denominator <= 1024 and abs(found.numerator) <= 4096 else None
