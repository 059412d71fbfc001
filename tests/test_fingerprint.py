"""Fingerprints of functions: they change with what a function computes, and with nothing else."""

import collections
import dataclasses
import decimal
import enum
import functools
import logging
import os
import pathlib
import subprocess
import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import model

from jaxlens.batch.fingerprint import AsOfNow, fingerprint, fingerprint_of

package, module = types.ModuleType("of_a_user"), types.ModuleType("of_a_user.inner")
package.inner = module
LARGE = {"int64": np.zeros(100_000, np.int64), "float64": np.zeros(100_000), "on a device": jnp.zeros((300, 400))}


class Called:
    def __call__(self):
        return FACTOR


class Pair(NamedTuple):
    x: float

    def scaled(self):
        return self.x * FACTOR


class Named(dict):
    pass


called, pair, named = Called(), Pair(1.0), Named()
holder, of_module = types.SimpleNamespace(by=0), types.SimpleNamespace(module=module)
executed = {"FACTOR": 0}
exec("def of_exec():\n    return FACTOR", executed)


def of_helper():
    return called()


def of_inner():
    return [FACTOR for _ in range(3)]


def of_submodule():
    return package.inner.FACTOR


def of_import():
    from of_a_user.inner import FACTOR

    return FACTOR


def of_default(read=module):
    return read.FACTOR


def of_held_module():
    return of_module.module.FACTOR


def of_own_attribute():
    return of_own_attribute.by


@functools.wraps(jnp.sum)
def of_wrapper():
    return FACTOR


def of_dict():
    return named.by


def of_method():
    return pair.scaled()


def of_object():
    return holder.by


def of_large():
    return LARGE


READERS = (
    called, of_helper, of_inner, of_submodule, of_import, of_default, of_held_module, of_own_attribute, of_wrapper,
    executed["of_exec"], of_dict, of_method, of_object, jax.jit(of_helper), functools.partial(of_object),
)  # fmt: skip


@pytest.mark.parametrize("function", READERS, ids=lambda function: getattr(function, "__name__", "object"))
def test_a_change_is_noticed(function, monkeypatch):
    def as_of(factor):
        monkeypatch.setitem(sys.modules, "of_a_user.inner", module)
        monkeypatch.setitem(globals(), "FACTOR", factor)
        module.FACTOR = executed["FACTOR"] = of_own_attribute.by = named.by = holder.by = factor
        return AsOfNow(function)

    assert as_of(1) != as_of(2)
    if function is not of_held_module:  # such a function is traced again in every call
        assert as_of(2) == as_of(2)


@pytest.mark.parametrize("kind", LARGE)
def test_a_single_value_of_a_large_array_is_noticed(kind, monkeypatch):
    before, array = AsOfNow(of_large), np.array(LARGE[kind])
    array.reshape(-1)[12_345] = 1e-30 if "int" not in kind else 1 << 40
    monkeypatch.setitem(LARGE, kind, array if kind != "on a device" else jnp.asarray(array))
    assert before != AsOfNow(of_large)


def test_functions_in_one_line_differ():
    twice, thrice = (lambda value, hook: value * 2), (lambda value, hook: value * 3)
    assert fingerprint(twice) != fingerprint(thrice)


def test_contents_without_attributes_differ():
    pairs = [(decimal.Decimal(2), decimal.Decimal(3)), (collections.deque([1]), collections.deque([2]))]
    pairs += [([[1], 2], [[1, 2]]), ({"a": 1}, {"a": 2}), (np.array("a"), np.array("b")), (Pair(1.0), Pair(2.0))]
    for one, other in pairs:
        assert fingerprint(lambda one=one: one) != fingerprint(lambda one=other: one)


def test_what_jax_made_is_sure():
    jitted, mapped = jax.jit(lambda x: 2 * x), jnp.add
    assert fingerprint_of(lambda x: jax.nn.relu(jitted(mapped(x, x)))).is_sure


def test_what_cannot_be_read_is_not_sure():
    deleted, deep = jnp.zeros(3), []
    deleted.delete()
    for _ in range(5000):
        deep = [deep]
    for value in (deleted, deep, np.random.default_rng(0), jnp.zeros(100_000, jnp.int4), model("gpt2"), module):
        fingerprint_of(lambda value=value: value)
    for value in (deleted, deep, np.random.default_rng(0), [module]):
        assert not fingerprint_of(lambda value=value: [value]).is_sure


class Kind(enum.Enum):
    A = 1
    B = 2
    C = 3


@dataclasses.dataclass(frozen=True)
class Point:
    x: int = 1


PATH, TUPLES = pathlib.Path("a/b"), {(1, "a"), ("b",), (2, 3)}
KINDS, POINTS = {Kind.A, Kind.B, Kind.C}, {Point(1), Point(2)}


def of_sets():
    return hash(PATH), TUPLES, KINDS, POINTS, TUPLES, logging.getLogger("a").info, "x" in {"a", "b", "c"}


def test_it_is_the_same_in_another_process():
    code = "import test_fingerprint as t; print(hash(t.PATH) and t.fingerprint(t.of_sets))"
    environments = [
        {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu"}
        for seed in ("1", "2")
    ]
    run = functools.partial(subprocess.run, [sys.executable, "-c", code], check=True, capture_output=True)
    assert len({run(env=environment).stdout for environment in environments}) == 1
