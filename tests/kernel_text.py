"""What the text of a compiled kernel says: operations fused unasked, and how a cluster's thread blocks wait."""

import re


def lanes(pattern, text):
    """How many numbers the instructions compute that a pattern finds; a first group of it is the width of a vector."""
    return sum(int(width or 1) for width in re.findall(pattern, text))


def fused(asm):
    """Operations that are fused, or that the assembler may fuse, though the source did not ask for it with `tl.fma`.

    PTX: "mul/add sequences with no rounding modifiers may be optimized to use fused-multiply-add" (PTX ISA, `add`);
    with one, such as .rn, they may not. In AMD's assembly each division has five of its own, a root in float64 seven.
    The libraries that compute erf ask for theirs; AMD's asks for some by `fmuladd`, and has two in each exponential.
    sm_80 adds bfloat16 as x * 1 + y: 0x3F80 is 1, twice in a register.
    """
    asked = lanes(r"\bcall [^@]*?(?:<(\d+) x \w+> )?@llvm\.(?:fma\.|nvvm\.fma\.rn\.[fd]\b)", asm["llir"])
    if "ptx" in asm:
        text = asm["ptx"]
        free = re.findall(r"\b(?:add|sub|mul)(?:\.ftz|\.sat)*\.(?:f|bf)(?:16|32|64)", text)
        for one in re.findall(rf"mov\.b32 \s*(%r\d+), {0x3F803F80};", text):
            text = re.sub(rf"fma\.rn\.bf16x2 \s*%r\d+, %r\d+, {one}, ", "", text)
        return lanes(r"\b(?:fma|mad)\.(?:\w+\.)*?b?f\d\d(?:x(2))?", text) - asked + len(free)
    if "ocml_erf" in asm["llir"]:
        called = r"\bcall [^@]*?(?:<(\d+) x \w+> )?@llvm\."
        asked += lanes(called + r"fmuladd\.", asm["llir"]) + 2 * lanes(called + r"exp\.", asm["llir"])
    text = asm["amdgcn"].replace("v_pk_fma", "v_2_fma")
    own = 5 * text.count("v_div_fmas_f") + 7 * text.count("v_rsq_f64")
    return lanes(r"\bv_(?:(2)_)?(?:fma|mad|mac)(?:c|ak|mk)?_(?:legacy_)?f(?:16|32|64)", text) - own - asked


def steps(ptx):
    """What a kernel does with the memory and the barriers of its cluster, in the order of its text."""
    patterns = {
        "read": r"ld\.shared::cluster",
        "write": r"(st|red|atom)\S*\.shared::cluster",
        "arrive": r"barrier\.cluster\.arrive",
        "wait": r"barrier\.cluster\.wait",
        "fence": r"fence\S*\.cluster",
        "end": r"ret;",
    }
    return [
        (name, line.strip())
        for line in ptx.splitlines()
        for name, pattern in patterns.items()
        if re.match(rf"\s*(@\S+\s+)?{pattern}", line)
    ]


def faults(ptx, size):
    """What is wrong with how the thread blocks of a cluster of that size wait for one another; nothing if all is right.

    They have to wait before they use another's memory, and before they end; what they wrote is visible then.
    """
    found = []
    said = re.search(r"\.reqnctapercluster\s+(\d+)", ptx)
    if int(said[1] if said else 1) != size:
        found.append("a cluster of another size")
    if (size > 1) != any(name == "read" for name, _line in steps(ptx)):
        found.append("blocks of a cluster do not read each other's memory, or a block alone does")
    names = [name for name, _line in steps(ptx) if name != "fence"]
    shared = [at for at, name in enumerate(names) if name in ("read", "write")]
    if any(pair != ["arrive", "wait"] for pair in zip_pairs([n for n in names if n in ("arrive", "wait")])):
        found.append("an arrival is not followed by its wait")
    if shared and "wait" not in names[: shared[0]]:
        found.append("memory of another block is used before any barrier")
    if shared and "wait" not in names[shared[-1] :]:
        found.append("a block may end before others have used its memory")
    relaxed = [at for at, (name, line) in enumerate(steps(ptx)) if name == "arrive" and ".relaxed" in line]
    if any(at == 0 or steps(ptx)[at - 1][0] != "fence" for at in relaxed):
        found.append("a relaxed arrival without a fence before it")
    if any("aligned" not in line for name, line in steps(ptx) if name in ("arrive", "wait")):
        found.append("a barrier that some threads of a warp may miss")
    return found


def zip_pairs(items):
    """Neighbours two by two; what is left alone has no partner."""
    return [items[at : at + 2] for at in range(0, len(items), 2)]
