"""Replace the norms of a finished model by the library's, in place, and go back.

A module is replaced by changing its class and nothing else: it stays the same object, so its parameters, buffers,
hooks, flags and attributes stay, and so does every reference to it. A class of `torch.nn` becomes the library's
subclass of that name. Any other class becomes a subclass made for it, of the same name, in which only ``forward``
differs. So does a module in whose code something is joined with a norm, see `normtriton.convert.fuse`.
"""

from __future__ import annotations

import copyreg
import inspect
from collections import defaultdict
from collections.abc import Iterable
from contextlib import contextmanager
from fnmatch import fnmatchcase
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from .. import modules
from ..autograd.call import Call
from ..autograd.derivatives import Axes
from ..autograd.function import has_kernels
from ..autograd.surrounded import decomposed
from ..autograd.ways import normalize
from ..modules import _parameter, scripted_as
from ..planning.schedule import Problem
from ..planning.stages import Stages
from ..surroundings import run as surround
from .fuse import Fused, forward_of, fusible, with_activation
from .recognize import FUNCTIONS, Recognized, count_groups, names_eps, recognize, structure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from ..surroundings import Around

__all__ = ["convert", "restore", "restored"]


class Converted(NamedTuple):
    """A module whose class was changed.

    Attributes:
        name: as in ``model.named_modules()``; the first, if there are several.
        before, after: its classes.
        function: what it computes, in words.
    """

    name: str
    before: type[nn.Module]
    after: type[nn.Module]
    function: str


class LeftAlone(NamedTuple):
    """A module that is a norm, or may be one, and was not changed.

    Attributes:
        name: as in ``model.named_modules()``; the first, if there are several.
        kind: its class.
        reason: why.
    """

    name: str
    kind: type[nn.Module]
    reason: str


class Report(NamedTuple):
    """What `convert` did; ``str()`` says it in words.

    Attributes:
        converted: the norms.
        left_alone: norms that are as they were.
        fused: modules in whose code something is joined with a norm; of these, ``function`` says what.
        not_fused: norms, and modules that call them, where nothing could be joined.
    """

    converted: tuple[Converted, ...] = ()
    left_alone: tuple[LeftAlone, ...] = ()
    fused: tuple[Converted, ...] = ()
    not_fused: tuple[LeftAlone, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.done}: {len(self.converted)}", *_listed("", self.converted)]
        lines += [*_listed("left alone", self.left_alone), *_listed("fused", self.fused)]
        return "\n".join([*lines, *_listed("not fused", self.not_fused)])

    @property
    def done(self) -> str:
        """The word for it."""
        return "converted"


class Restored(Report):
    """What `restore` did: a `Report` whose ``converted`` lists what has its original class again."""

    done = "restored"


def _listed(title: str, entries: tuple[Converted, ...] | tuple[LeftAlone, ...]) -> list[str]:
    """Lines of a report: one for all modules of a class of which the same is to be said."""
    names: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        said = f", {entry.function}" if isinstance(entry, Converted) else f": {entry.reason}"
        names[_full_name(entry[1]) + said].append(entry.name)
    lines = [f"{title}: {len(entries)}"] if title and entries else []
    return lines + [f"  {len(some)} x {what}: {_some(some)}" for what, some in names.items()]


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _some(names: list[str]) -> str:
    shown = [name or "the model itself" for name in names]
    return ", ".join(shown if len(shown) < 5 else [*shown[:2], "...", shown[-1]])


#: Which modules: a pattern of names, a class, or several of either.
Selector: TypeAlias = "str | type[nn.Module] | Iterable[str | type[nn.Module]]"


def convert(
    model: nn.Module, *, include: Selector | None = None, exclude: Selector | None = None, fuse: bool = False
) -> Report:
    """Replace every norm in a model by the library's, in place.

    Replaced are `torch.nn`'s batch, layer, instance, group and RMS norms, subclasses of them that keep their forward,
    and norms of any other class whose structure is a norm's and that compute the same as one of
    `normtriton.convert.recognize.FUNCTIONS`, which is tried on small inputs on the CPU, results and gradients:
    transformers'
    ``LlamaRMSNorm`` and its kin, ``T5LayerNorm``, diffusers' ``RMSNorm``, ``LayerNorm2d`` and others.

    Nothing changes but a module's class, see `normtriton.convert`'s module: parameters, buffers, hooks, flags, names
    and identity stay, and optimizers, state dicts and tied weights with them. The new class is a subclass of the old.
    A module that is used in several places is replaced in all. A norm of another class than `torch.nn`'s runs its own
    forward where it was not tried: where `normtriton` has no kernels, for another number of dimensions or mixture of
    dtypes, and for input that does not fit its parameters. A second call finds nothing to do.

    Args:
        model: it, or any module in it, may be on any device, "meta" too.
        include: convert only what is in these modules, which may be norms themselves. A string is a pattern for names
            as in ``model.named_modules()``, for any of a module's names, with ``*`` for any characters, dots too, as
            `fnmatch` has it; the model's own name is "". A class stands for its instances. Several are given as a list.
        exclude: leave alone what is in these modules, chosen alike, even if it is included. It is not reported.
        fuse: compute in a norm's pass what stands around it in a module's code, where `torch.fx` can trace that:
            a residual sum before it, a sum after it, an activation, and any of these together. The module gets a
            subclass of its class, too, whose forward runs the code that was found, and the module's own wherever
            something is not as it was when it was traced. Results, gradients and buffers were compared before.
    Returns:
        The modules that were replaced, and the norms that were not, each with the reason; and the same of what was
        fused. A module counts as a norm if
        it is an instance of `torch.nn`'s, or is named for one or has parameters and an eps, with no norm within it.
    Raises:
        TypeError: model is no module, or a selector is neither pattern nor class.
        ValueError: a pattern fits no name in the model.
    """
    found = _named_modules(model)
    chosen = set(found) if include is None else _select(found, "include", include)
    if exclude is not None:
        chosen -= _select(found, "exclude", exclude)
    changes: list[tuple[nn.Module, Converted]] = []
    left_alone: list[LeftAlone] = []
    for module, names in found.items():
        if module not in chosen:
            continue
        cls = type(module)
        decided = _replacement(module, fuse)
        if isinstance(decided, str):
            left_alone.append(LeftAlone(names[0], cls, decided))
        elif decided is not None:
            plain, function = decided
            changes.append((module, Converted(names[0], cls, _on_top_of(module, plain), function)))
    for module, change in changes:
        module.__class__ = change.after
    fused = _fuse({module: names[0] for module, names in found.items() if module in chosen}) if fuse else ((), ())
    return Report(tuple(change for _, change in changes), tuple(left_alone), *fused)


#: What has no forward, or none in Python.
_NOT_TRACED = (nn.ModuleList, nn.ModuleDict, torch.jit.ScriptModule)


def _fuse(chosen: dict[nn.Module, str]) -> tuple[tuple[Converted, ...], tuple[LeftAlone, ...]]:
    """Join what stands around the norms of some modules, whose names are given."""
    fused: list[Converted] = []
    not_fused: list[LeftAlone] = []
    for module, name in chosen.items():
        cls = type(module)
        if cls in _originals or isinstance(module, _NOT_TRACED) or is_parametrized(module):
            continue
        how, unfused = fusible(module, chosen.__contains__, _originals)
        for inner, reason in unfused:
            full = ".".join(filter(None, (name, inner)))
            not_fused.append(LeftAlone(full, type(module.get_submodule(inner)), reason))
        if how is not None:
            module.__class__ = _derived(cls, how)
            fused.append(Converted(name, cls, type(module), how.words))
    return tuple(fused), tuple(not_fused)


def restore(model: nn.Module) -> Report:
    """Undo `convert`: give every module of the library its original class back, in place.

    A module that was made as the library's, as ``normtriton.LayerNorm(8)``, becomes `torch.nn`'s too, so that the model
    no longer needs the library.

    Args:
        model: whichever modules in it were converted, at once or not, or in another model that it was copied from.
    Returns:
        What was changed, and what cannot be undone: modules with settings that `torch.nn`'s do not have, and those of
        classes that others derived from the library's.
    Raises:
        TypeError: model is no module.
    """
    changes: list[Converted] = []
    left_alone: list[LeftAlone] = []
    for module, names in _named_modules(model).items():
        cls = type(module)
        plain = _plain_class(module)
        beyond = module.beyond_torch() if isinstance(module, modules.Leaf) else ""
        if beyond:
            left_alone.append(LeftAlone(names[0], cls, f"torch.nn's class has no {beyond}"))
        elif plain in _originals:
            module.__class__ = _on_top_of(module, _originals[plain])
            changes.append(Converted(names[0], cls, type(module), f"as {_full_name(_originals[plain])}"))
        elif any(kind in _originals for kind in cls.__mro__):
            left_alone.append(LeftAlone(names[0], cls, "its class was derived from the library's"))
    return Restored(tuple(changes), tuple(left_alone))


@contextmanager
def restored(model: nn.Module) -> Iterator[Report]:
    """`restore` for a while: `torch.nn`'s and others' own classes within, the library's again afterwards.

    For tools that know modules by their exact class, such as quantization, and for files that are to need no library.

    Args:
        model: as `restore` takes it. What is copied from it within has the original classes, and keeps them.
    Yields:
        What `restore` reports.
    Raises:
        TypeError: model is no module.
    """
    before = {module: (type(module), _plain_class(module)) for module in _named_modules(model)}
    report = restore(model)
    changed = {
        module: (type(module), _plain_class(module)) for module in before if type(module) is not before[module][0]
    }
    try:
        yield report
    finally:
        for module, (cls, plain) in changed.items():
            if type(module) is cls:
                module.__class__ = before[module][0]
            elif _plain_class(module) is plain:  # it was parametrized within, or is no longer
                module.__class__ = _on_top_of(module, before[module][1])


def _named_modules(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Each module once, with all its names."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, but got {type(model).__name__}")
    found: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        found[module].append(name)
    return found


def _select(found: dict[nn.Module, list[str]], which: str, selector: Selector) -> set[nn.Module]:
    """The modules that a selector stands for, with all that is within them."""
    selected: set[nn.Module] = set()
    given = [selector] if isinstance(selector, str | type) or not isinstance(selector, Iterable) else selector
    for one in given:
        if isinstance(one, str):
            fits = [module for module, names in found.items() if any(fnmatchcase(name, one) for name in names)]
            if not fits:
                raise ValueError(f"{which}: no module's name fits the pattern {one!r}")
        elif isinstance(one, type) and issubclass(one, nn.Module):
            fits = [module for module in found if isinstance(module, one)]
        else:
            raise TypeError(f"{which} takes patterns of names and classes of modules, but got {one!r}")
        selected.update(inner for module in fits for inner in module.modules())
    return selected


#: The library's class of each of `torch.nn`'s.
LIBRARY: dict[type[nn.Module], type[modules.Leaf]] = {
    getattr(nn, name): getattr(modules, name) for name in modules.__all__
}

#: What each class was before: the library's, and those that `_derived` made.
_originals: dict[type[nn.Module], type[nn.Module]] = {after: before for before, after in LIBRARY.items()}

#: Methods in which a norm of `torch.nn` computes.
_COMPUTING = ("forward", "_apply_instance_norm")


def _replacement(module: nn.Module, fuse: bool) -> tuple[type[nn.Module], str] | str | None:
    """The plain class to give a module, and what it computes; or why it stays as it is; or None if it is no norm."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled by torch.jit" if "norm" in str(module.original_name).lower() else None
    cls, plain = type(module), _plain_class(module)
    if any(kind in _originals for kind in cls.__mro__):
        return None
    base = next((kind for kind in LIBRARY if issubclass(plain, kind)), None)
    looks = base is not None or isinstance(module, nn.modules.batchnorm._NormBase) or _looks_like_a_norm(module)
    if "forward" in vars(module):
        return "its forward was replaced on the object" if looks else None
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "is not initialized: convert it after its first input" if looks else None
    settings = "" if base is None else ", ".join(name for name in LIBRARY[base]._settings if hasattr(module, name))
    if plain in LIBRARY and not settings:
        return LIBRARY[plain], f"as normtriton.{plain.__name__}"
    kept = base is not None and all(getattr(plain, name, None) is getattr(base, name, None) for name in _COMPUTING)
    within = fuse and base is not None and bool(module._modules) and not is_parametrized(module)
    if base is not None and settings and (kept or within):
        return f"has attributes that normtriton.{base.__name__} takes for settings: {settings}"
    if base is not None and kept:
        return _derived(plain, LIBRARY[base]), f"as normtriton.{base.__name__}"
    if base is not None and within:
        fused = with_activation(module, LIBRARY[base], _originals)
        return fused if isinstance(fused, str) else (_derived(cls, fused), fused.words)
    structure = structure_of(module, fuse) if looks else None
    if structure is None or isinstance(structure, str):
        return structure
    found = recognize(structure)
    return found if isinstance(found, str) else (_derived(cls, found), f"{found}")


def _looks_like_a_norm(module: nn.Module) -> bool:
    """Whether a module's class is named for a norm, or it has parameters and an eps, and no norm is within it."""
    parametric = bool(module._parameters) or is_parametrized(module)
    if "norm" not in type(module).__name__.lower() and not (parametric and any(map(names_eps, vars(module)))):
        return False
    names = (type(inner).__name__.lower() for inner in module.modules() if inner is not module)
    return not any("norm" in name for name in names)


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """A module's class before `torch.nn.utils.parametrize` put one of its own, for this module alone, on top."""
    return type(module).__bases__[0] if is_parametrized(module) else type(module)


def _on_top_of(module: nn.Module, plain: type[nn.Module]) -> type[nn.Module]:
    """The class of a module whose plain class becomes another."""
    if not is_parametrized(module):
        return plain
    cls = type(module)
    # not changed in place: deep copies of the module share it
    rebuilt: type[nn.Module] = _class_like(cls)(cls.__name__, (plain, *cls.__bases__[1:]), dict(vars(cls)))
    return rebuilt


def _class_like(cls: type) -> Callable[..., Any]:
    """What makes classes like this one: its metaclass."""
    return type(cls)


#: How a derived class computes: as the library's norm, a function that was recognized, or code that was found.
How: TypeAlias = "type[nn.Module] | Recognized | Fused"

_derivations: dict[tuple[type[nn.Module], How], type[nn.Module]] = {}


def _derived(original: type[nn.Module], how: How) -> type[nn.Module]:
    """The subclass of a class whose forward is the library's.

    Args:
        original: a subclass of a norm of `torch.nn` that keeps its forward, a class that computes a known function, or
            one that calls norms.
        how: the library's norm, or what the modules of the class compute.
    """
    if (original, how) in _derivations:
        return _derivations[original, how]

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807  pickle and deepcopy ask for it
        make, arguments, *rest = super(derived, self).__reduce_ex__(protocol)
        if make in _MAKING_AN_EMPTY_OBJECT:  # its class, which no module holds, is made again
            return _empty, (original, how), *rest
        return make, arguments, *rest

    members: dict[str, Any] = {
        "__doc__": original.__doc__,
        "__module__": __name__,
        "__qualname__": original.__qualname__,
        "__reduce_ex__": __reduce_ex__,
    }
    bases: tuple[type[nn.Module], ...] = (original,)
    if isinstance(how, Fused):
        members["forward"] = forward_of(original, how, _originals)
        bases = (original,) if how.library is None else (original, how.library)
    elif isinstance(how, Recognized):
        members["forward"], members["surrounded"] = _forward(original, how)
        members["_settings"] = ()  # its attributes are its own, whatever they are called
        bases = original, modules.Leaf
    else:  # it comes after the original in the order of resolution, and before torch.nn's
        bases = original, how
    derived: type[nn.Module] = _class_like(original)(original.__name__, bases, members)
    _derivations[original, how] = derived
    _originals[derived] = original
    return derived


#: What the default ``__reduce_ex__`` makes an object with, which is given its state afterwards.
_MAKING_AN_EMPTY_OBJECT = (copyreg.__newobj__, copyreg._reconstructor)  # type: ignore[attr-defined]  # no types for them


def _empty(original: type[nn.Module], how: How) -> nn.Module:
    """An object of a derived class, to be given its state."""
    return object.__new__(_derived(original, how))


def _forward(original: type[nn.Module], found: Recognized) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A forward that runs the kernels on whatever the original was tried on, and on the rest the original.

    And the same with what surrounds the norm, which is given apart.
    """
    function = FUNCTIONS[found.function]
    weighted, biased = ("weight" in found.parameters), ("bias" in found.parameters)
    results = {(x, parameters): result for x, parameters, result in found.dtypes}
    autocast_results: dict[tuple[torch.dtype | None, ...], torch.dtype] = {}
    named = (("d", 1),) if function.axis == -1 else ()  # what the shape does not tell
    own, run = original.forward, normalize

    second = found.second

    def result_dtype(module: Any, x: Any, weight: Tensor | None, bias: Tensor | None) -> torch.dtype | None:
        """The result's, None for what was not tried."""
        if not (isinstance(x, torch.Tensor) and has_kernels(x) and x.dim() in found.ndims and x.numel()):
            return None
        dtype = None
        for parameter in (weight, bias):
            if parameter is not None:
                if parameter.shape != (x.shape[function.axis],) or parameter.device != x.device:
                    return None
                if dtype not in (None, parameter.dtype):
                    return None
                dtype = parameter.dtype
        if found.size and x.shape[function.axis] != found.size:
            return None
        if function.grouped:
            size = x.shape[function.axis]
            groups = count_groups(found.groups, getattr(module, found.groups), size)
            if size % groups or x.numel() <= groups:
                return None
        result = results.get((x.dtype, dtype))
        if result is not None and torch.is_autocast_enabled(x.device.type):
            key = x.dtype, dtype, torch.get_autocast_dtype(x.device.type)
            if key not in autocast_results:  # the original tells, of something small
                small = [n if axis == function.axis % x.dim() else min(n, 2) for axis, n in enumerate(x.shape)]
                with torch.no_grad():
                    y = own(module, *[x.new_zeros(small)] * (1 if second is None else 2))
                    autocast_results[key] = (y[0] if isinstance(y, tuple) else y).dtype
            return autocast_results[key]
        return result

    def taken(module: Any, x: Any) -> tuple[Any, ...] | None:
        """What `normalize` is given, None for what was not tried."""
        weight = _parameter(module, "weight") if weighted else None
        bias = _parameter(module, "bias") if biased else None
        result = result_dtype(module, x, weight, bias)
        if result is None:
            return None
        if weight is not None and found.from_one:
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32)) + 1
        sizes = named
        if function.grouped:
            sizes = (("g", count_groups(found.groups, getattr(module, found.groups), x.shape[function.axis])),)
        problem = Problem(function.norm, tuple(x.shape), sizes)
        dtype = None if result == x.dtype else result
        return x, weight, bias, Call(problem, float(getattr(module, found.eps)), dtype=dtype)

    def forward(self: Any, input: Any) -> Any:  # noqa: A002  it is renamed below
        _given = taken(self, input)
        return own(self, input) if _given is None else run(*_given)

    def forward_of_two(self: Any, input: Any, second: Any) -> Any:  # noqa: A002  they are renamed below
        _alike = isinstance(input, torch.Tensor) and isinstance(second, torch.Tensor) and second.shape == input.shape
        if _alike and second.dtype == input.dtype and second.device == input.device:
            _given = taken(self, input)
            if _given is not None:
                return with_around(_given, around_of(second))
        return own(self, input, second)

    def around_of(t: Any) -> Around:
        assert second is not None
        if second.role == "residual":
            return {"residual": t}
        return {"gate": t, "activation": second.activation, "gate_first": second.first}

    def with_around(given: tuple[Any, ...], around: Around) -> Any:
        x, weight, bias, call = given
        plain = lambda u, w, b: run(u, w, b, call)
        spread = Axes(call.problem).broadcast
        name, ready = original.__name__, lambda: (call, weight, bias)
        return surround(name, x, weight, bias, around, ready, plain, spread, lambda: None)  # `taken` has tried it

    def surrounded(self: Any, x: Any, around: Any) -> Any:
        given = taken(self, x)
        if given is not None:
            return with_around(given, around)
        tensors = {name: t for name, t in around.items() if name != "activation"}
        stages = Stages(around.get("activation", ""))
        return decomposed(lambda u, _w, _b: own(self, u), lambda p: p, x, None, None, tensors, stages)

    # callers may name the arguments as the original does, and `torch.jit.script` compiles the original among its names
    ours = forward if second is None else forward_of_two
    given = (found.input,) if second is None else (found.input, second.name)
    code = ours.__code__.replace(
        co_varnames=(ours.__code__.co_varnames[0], *given, *ours.__code__.co_varnames[1 + len(given) :])
    )
    defaults = tuple(p.default for p in inspect.signature(own).parameters.values() if p.default is not p.empty)
    globals_ = getattr(own, "__globals__", ours.__globals__)
    named_so = FunctionType(code, globals_, "forward", None if second is None else defaults, ours.__closure__)
    return scripted_as(own)(named_so), surrounded
