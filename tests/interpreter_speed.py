"""Triton's interpreter, made several times faster: what it makes anew at every call is made once.

Nothing that a kernel computes changes. These costs go, of Triton 3.9; names that another release lacks are left alone:

- Every launch, and every call of a device function, patches `triton.language`, member by member, after a look at all
  members of its modules and classes. The patches are the same each time. Here they are made once, set at a launch,
  and taken back after it, as Triton does. This is two thirds of the time of a test of one small shape.
- Each addition, subtraction and multiplication of integers is made again in 64 bits to find an overflow. What is found
  goes to a device assertion, and those say nothing unless the interpreter's `debug` is set. It never is.
- The numpy type of a Triton type is looked up in a table that is made anew for each look.
- Every tile makes its type and its shape anew, each number of it wrapped. Tiles of one shape share them here.
- Most operands already have the type and the shape that they are compared with. Identity is asked first.
- The types that two operands get are worked out for each operation: they follow from theirs. A scalar beside a tile is
  made a tile: numpy does without. Numbers are made tensors each time: they are few.
- Any value may be a number that is known when compiling, or a tuple of such. Most are tensors or plain numbers.
- Casts of integers, new axes and tiles made as wide as one another are each one step of numpy.
"""

import dataclasses
from functools import cache
from types import SimpleNamespace

import numpy as np
import triton
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def speed_up():
    """Have this process's interpreter make things once; called before any launch."""
    if hasattr(interpreter, "_LangPatchScope"):
        interpreter._patch_lang = patch_once(interpreter._patch_lang)
    options = interpreter.interpreter_builder.options
    if not options.debug:
        interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    interpreter._get_np_dtype = remember_by_scalar(interpreter._get_np_dtype)
    if triton.__version__.startswith("3.9."):
        share_shapes()
        compare_sizes_first()
        ask_identity_first()
        remember_operands()
        go_to_numpy()
        unwrap_by_type()


def patch_once(patch):
    """Triton's `_patch_lang`, with patches that were made before; calls within a launch find them set."""
    scope = patch(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    before = {(place, name): value for place, name, value in reversed(scope._changes)}  # of two changes, the first
    after = {(place, name): directly(getattr(place, name)) for place, name in before}
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


def directly(patched):
    """A patched function of the language, without the two functions that Triton has around each builtin."""
    builtin = (getattr(patched, "__kwdefaults__", None) or {}).get("member")
    if getattr(builtin, "__code__", None) is not core.builtin(speed_up).__code__:
        return patched
    function = builtin.__wrapped__

    def call(*args, **kwargs):
        kwargs["_semantic"] = interpreter.interpreter_semantic
        return function(*args, **kwargs)

    return call


def remember_by_scalar(numpy_type):
    """Triton's `_get_np_dtype`, which depends on the type of one element."""
    known = {}

    def remembered(triton_type):
        scalar = triton_type.scalar
        if scalar.name not in known:
            known[scalar.name] = numpy_type(scalar)
        return known[scalar.name]

    return remembered


def share_shapes():
    """Types of tiles, and tiles, take what follows from their shape from the first that had it."""
    make_type, make_tile = core.block_type.__init__, core.tensor.__init__
    known = {}

    def shape_of_tile(type):  # noqa: A002
        tile = object.__new__(core.tensor)
        make_tile(tile, None, type)
        return tile.shape, tile.numel

    def type_of(self, element_ty, shape):
        sizes = tuple([size.value if isinstance(size, core.constexpr) else size for size in shape])
        if sizes not in known:
            make_type(self, element_ty, list(sizes))
            known[sizes] = self.shape, self.numel, shape_of_tile(self)
        self.element_ty, self.sizes = element_ty, sizes
        self.shape, self.numel, self.of_tile = known[sizes]
        self.name = f"<{sizes}, {element_ty}>"

    def tile_of(self, handle, type):  # noqa: A002
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = type.of_tile if type.is_block() else of_scalar

    def with_element_type(self, element_ty):
        return tile_type(element_ty, self.sizes)

    of_scalar = shape_of_tile(core.int32)
    core.block_type.__init__, core.tensor.__init__ = type_of, tile_of
    core.block_type.with_element_ty = with_element_type


_tile_types = {}


def tile_type(element, sizes):
    """The type of a tile, but of pointers always the same object: types are compared more often than they are made."""
    if type(element) is not core.dtype:
        return core.block_type(element, sizes)
    found = _tile_types.get((element.name, sizes))
    if found is None:
        found = _tile_types[element.name, sizes] = core.block_type(element, sizes)
    return found


def compare_sizes_first():
    """Whether numpy has widened a result is seen from its size, but for pointers and truth values."""
    check = interpreter.TensorHandle.__post_init__

    def checked(self):
        dtype = self.dtype
        if type(dtype) is not core.dtype or 8 * self.data.itemsize > dtype.primitive_bitwidth:
            check(self)

    interpreter.TensorHandle.__post_init__ = checked


def ask_identity_first():
    """Of two types, and of the shapes of two operands."""
    equal, broadcast = core.dtype.__eq__, TritonSemantic.broadcast_impl_value

    def same_type(self, other):
        return self is other or equal(self, other)

    def same_shape(self, left, right):
        a, b = left.type, right.type
        tiles = a.is_block(), b.is_block()
        if (a.shape is b.shape) if all(tiles) else not any(tiles):
            return left, right
        sizes = common(a.sizes, b.sizes) if all(tiles) else None
        if sizes is None:
            return broadcast(self, left, right)
        return widened(left, sizes), widened(right, sizes)

    @cache
    def common(left, right):
        fit = len(left) == len(right) and all(1 in pair or pair[0] == pair[1] for pair in zip(left, right, strict=True))
        return tuple(b if a == 1 else a for a, b in zip(left, right, strict=True)) if fit else None

    def widened(tile, sizes):
        if tile.type.sizes == sizes:
            return tile
        return made(np.broadcast_to(tile.handle.data, sizes), tile.type.element_ty, sizes)

    core.dtype.__eq__, TritonSemantic.broadcast_impl_value = same_type, same_shape


def remember_operands():
    """The types of two operands by those they had; a whole number beside an integer takes the integer's type."""
    slow = TritonSemantic.binary_op_type_checking_impl
    integers = core.int32.name, core.int64.name
    types, numbers = {}, {}

    def number(self, value, dtype):
        if (value, dtype.name) not in numbers:
            numbers[value, dtype.name] = self._cast_to_computation_type(value, dtype)
        return numbers[value, dtype.name]

    def operands(self, left, right, *flags, **named):
        promoted = flags[2:3] != (False,) and not named
        if type(left) is core.tensor and type(right) is core.tensor:
            key = left.dtype.name, right.dtype.name, flags, *named.items()
            if key not in types:
                left, right = slow(self, left, right, *flags, **named)
                types[key] = left.dtype, right.dtype
                return left, right
            a, b = types[key]
            left = left if left.dtype is a else self.cast(left, a)
            right = right if right.dtype is b else self.cast(right, b)
        elif promoted and type(right) is int and type(left) is core.tensor and left.dtype.name in integers:
            right = number(self, right, left.dtype)
        elif promoted and type(left) is int and type(right) is core.tensor and right.dtype.name in integers:
            left = number(self, left, right.dtype)
        else:
            return slow(self, left, right, *flags, **named)
        a, b = left.type, right.type
        if a.is_block() == b.is_block():
            return self.broadcast_impl_value(left, right)
        if a.is_block():
            return left, core.tensor(right.handle, a.with_element_ty(b))
        return core.tensor(left.handle, b.with_element_ty(a)), right

    TritonSemantic.binary_op_type_checking_impl = operands


def made(data, element, sizes):
    """A tile of these numbers."""
    return core.tensor(interpreter.TensorHandle(data, element), tile_type(element, sizes))


#: What numpy converts as Triton does, and without a warning.
INTEGERS = {"int32": np.int32, "int64": np.int64, "uint32": np.uint32}
NUMBERS = INTEGERS | {"fp32": np.float32, "fp64": np.float64}


def go_to_numpy():
    """Casts and new axes."""
    cast, expand = TritonSemantic.cast, TritonSemantic.expand_dims

    def cast_integer(self, tile, dtype, rounding=None):
        have, want = tile.dtype, dtype.scalar
        if have is want:
            return tile
        if have.name not in INTEGERS or want.name not in NUMBERS or rounding is not None:
            return cast(self, tile, dtype, rounding)
        handle = interpreter.TensorHandle(tile.handle.data.astype(NUMBERS[want.name]), want)
        return core.tensor(handle, tile.type.with_element_ty(want) if tile.type.is_block() else want)

    def expand_tile(self, tile, axis):
        if not tile.type.is_block():
            return expand(self, tile, axis)
        sizes = wider(tile.type.sizes, axis)
        return made(tile.handle.data.reshape(sizes), tile.type.element_ty, sizes)

    @cache
    def wider(sizes, axis):
        return (*sizes[:axis], 1, *sizes[axis:])

    TritonSemantic.cast, TritonSemantic.expand_dims = cast_integer, expand_tile


def unwrap_by_type():
    """Tensors and numbers are no tuples, and hold nothing."""
    unwrap = core._unwrap_if_constexpr
    plain = {core.tensor, int, bool, float, str, type(None), core.dtype}

    def unwrapped(value):
        if type(value) in plain:
            return value
        return value.value if type(value) is core.constexpr else unwrap(value)

    core._unwrap_if_constexpr = unwrapped
