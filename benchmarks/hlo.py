"""What a program compiled for a TPU does, read from its text: cycles, bytes and FLOPs of each operation, and its place.

The TPU's compiler writes an estimate of the cycles beside most operations. These are estimates, not measured times. It
writes none beside native gathers and scatters, some changes of layout, and kernels in Pallas. Such operations are
marked, since a sum of cycles does not include them.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Operations without an estimate are listed only if their results have at least this many bytes.
SMALL = 4096
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Not executed, or counted by what they call.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call")
# Groups of operations. The group of an operation is the first one whose pattern matches a file and function that it
# comes from, unless its opcode decides.
PLACES = (
    ("data and augmentation", r"data/batches\.py"),
    ("optimiser", r"optax/|dctps_jax/optimizers\.py|apply_updates"),
    ("BatchNorm", r"normalization\.py"),
    ("pooling", r"pool|halve_by"),
    ("gathers and scatters", r"add_at|sparse_part|gathered\.py|in_rows\.py|forms\.py|dynamic\.py"),
    ("making kernels", r"kernel_of|offset_kernel|offsets/|fixed_part|effective_kernel|factored_offset"),
)


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    type: str
    opcode: str
    operands: list[str]
    text: str

    @property
    def bytes(self) -> int:
        return size_of(self.type)


class Executed(NamedTuple):
    """An instruction of a ``computation`` that is executed ``times`` times, and the places that it comes from.

    Where the compiler names none, ``frames`` are those of the loop that it is in.
    """

    computation: str
    instruction: Instruction
    times: int
    frames: list[str]


class Operation(NamedTuple):
    """An operation that is executed ``times`` times in a call of the program; without an estimate it has no cycles."""

    group: str
    place: str
    opcode: str
    type: str
    times: int
    cycles: float | None
    flops: float
    bytes: float
    result_bytes: int

    @property
    def lacks_estimate(self) -> bool:
        """Whether the operation takes time of which the compiler says nothing; small results and starts are none."""
        return self.cycles is None and self.result_bytes >= SMALL and not self.opcode.endswith("-start")


def size_of(type_text: str, in_memory: bool = False) -> int:
    """Return the bytes of all arrays in the text of a type, or of those that lie in the chip's main memory (HBM)."""
    total = 0
    for dtype, shape, layout in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?", type_text):
        bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 0)
        if not (in_memory and "S(" in layout):
            total += math.prod(int(size) for size in shape.split(",") if size) * bits // 8
    return total


class Program:
    """The computations of a compiled program, by name."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, current = "", {}
        for line in text.splitlines():
            if head := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
                current = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif found := re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)", line):
                name, type_text, opcode, rest = found.groups()
                operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
                current[name] = Instruction(name, type_text, opcode, operands, line)
        self._frames = _frames(text)

    def instructions(self) -> Iterator[Executed]:
        """Yield all that is executed in a call. Raises ValueError for a loop whose number of rounds is not known."""
        yield from self._executed(self.entry, 1, [])

    def _executed(self, computation: str, times: int, outer: list[str]) -> Iterator[Executed]:
        for instruction in self.computations[computation].values():
            frames = self.frames(instruction.text) or outer
            yield Executed(computation, instruction, times, frames)
            if instruction.opcode in ("while", "conditional", "call"):
                repeated = times * self._rounds(instruction) if instruction.opcode == "while" else times
                for name in _called(instruction.text):
                    yield from self._executed(name, repeated, frames)

    def _rounds(self, loop: Instruction) -> int:
        """Return how often the body of a loop is executed.

        The compiler writes it beside most loops. Those that it makes of gathers count from 0 to a constant.
        """
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(known[1])
        condition = self.computations[re.findall(r"condition=%([\w.\-]+)", loop.text)[0]]
        for instruction in condition.values():
            if instruction.opcode == "compare" and "direction=LT" in instruction.text:
                limit = condition.get(instruction.operands[1])
                if limit is not None and limit.opcode == "constant":
                    return int(re.findall(r"constant\((\d+)\)", limit.text)[0])
        raise ValueError(f"the number of rounds of the loop {loop.name} is not known: its cycles cannot be added up")

    def operations(self) -> list[Operation]:
        """Return what takes time, the largest first."""
        found = []
        for computation, instruction, times, outer in self.instructions():
            # Custom calls other than Pallas's kernels are views and allocations.
            is_view = instruction.opcode == "custom-call" and '"tpu_custom_call"' not in instruction.text
            if is_view or instruction.opcode in FREE or instruction.opcode.endswith("-done"):
                continue
            cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.text)
            inner = self._inner(computation, instruction)
            products = [(name, op) for name, op in inner if op.opcode in ("convolution", "dot")]
            hero = products[0][1] if products else instruction
            frames = self.frames(hero.text) or outer
            operands = [self.computations[computation].get(name) for name in instruction.operands]
            opcodes = {op.opcode for _, op in inner} | {instruction.opcode}
            read = [size_of(op.type, True) for op in operands if op]
            if opcodes & {"gather", "dynamic-slice", "slice", "dynamic-update-slice"}:
                read = [min(size, instruction.bytes) for size in read]  # not all of what it picks from
            moved = size_of(instruction.type, True) + sum(read)
            if instruction.opcode.endswith("-start"):  # its type names operand, result and a number
                moved = size_of(re.findall(r"\w+\[[\d,]*\]", instruction.type)[-2:][0])
            found.append(
                Operation(
                    _group(hero, opcodes, frames),
                    _place(frames, hero),
                    instruction.opcode,
                    re.sub(r"\{[^}]*\}", "", instruction.type),
                    times,
                    times * int(cycles[1]) if cycles else None,
                    times * sum(self._flops(name, op) for name, op in products),
                    times * moved,
                    instruction.bytes,
                )
            )
        return sorted(found, key=lambda operation: -(operation.cycles or 0))

    def frames(self, text: str) -> list[str]:
        """Return the places ``file:line function`` that an instruction comes from, the innermost first."""
        number, places = re.search(r"stack_frame_id=(\d+)", text), []
        frame = int(number[1]) if number else 0
        while frame:
            place, frame = self._frames[frame]
            places.append(place)
        return places

    def _inner(self, computation: str, instruction: Instruction) -> list[tuple[str, Instruction]]:
        """Return an instruction of a computation and what is fused into it, with the names of the computations."""
        if instruction.opcode != "fusion":
            return [(computation, instruction)]
        (name,) = _called(instruction.text)
        return [pair for inner in self.computations[name].values() for pair in self._inner(name, inner)]

    def _flops(self, computation: str, product: Instruction) -> float:
        """Return the FLOPs of a convolution, without products with padding and with zeros between the inputs."""
        inputs, kernel = (self.computations[computation].get(name) for name in product.operands[:2])
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.text)
        if inputs is None or kernel is None or labels is None:
            return 0.0
        sizes = [
            dict(zip(names, map(int, re.findall(r"\[([\d,]*)\]", of.type)[0].split(",")), strict=True))
            for names, of in zip(labels.groups(), (inputs, kernel, product), strict=True)
        ]
        spatial = sorted(set(labels[2]) - {"i", "o"})
        positions = (
            _products_along(sizes[0][axis], sizes[1][axis], sizes[2][axis], window)
            for axis, window in zip(spatial, _windows(product.text, len(spatial)), strict=True)
        )
        return 2.0 * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"] * math.prod(positions)


class Window(NamedTuple):
    """How a convolution moves over one spatial axis."""

    stride: int = 1
    low: int = 0  # padding before the first input
    lhs_dilate: int = 1
    rhs_dilate: int = 1


def _windows(text: str, rank: int) -> list[Window]:
    """Return the windows of a convolution's spatial axes, in their order."""
    found = re.search(r"window=\{([^}]*)\}", text)
    fields = dict(field.split("=") for field in found[1].split()) if found else {}
    axes = {name: fields[name].split("x") for name in ("stride", "pad", "lhs_dilate", "rhs_dilate") if name in fields}
    axes["low"] = [both.split("_")[0] for both in axes.pop("pad", [])]
    return [Window(**{name: int(values[axis]) for name, values in axes.items() if values}) for axis in range(rank)]


def _products_along(inputs: int, kernel: int, outputs: int, window: Window) -> int:
    """Return how many pairs of an output and a place of the kernel meet an input along a spatial axis."""
    starts = (output * window.stride - window.low for output in range(outputs))
    places = [start + number * window.rhs_dilate for start in starts for number in range(kernel)]
    return sum(place % window.lhs_dilate == 0 and 0 <= place < inputs * window.lhs_dilate for place in places)


def _called(text: str) -> list[str]:
    named = re.findall(r"(?:calls|body|to_apply|true_computation|false_computation)=%([\w.\-]+)", text)
    branches = re.search(r"branch_computations=\{([^}]*)\}", text)
    return named + (re.findall(r"%([\w.\-]+)", branches[1]) if branches else [])


def _frames(text: str) -> dict[int, tuple[str, int]]:
    """Return (place, number of the caller's frame or 0) by the number of each frame."""

    def table(title: str, pattern: str) -> dict[int, tuple[str, ...]]:
        part = re.search(rf"^{title}\n((?:\d.*\n)*)", text, re.MULTILINE)
        rows = re.findall(rf"^(\d+) {pattern}", part[1] if part else "", re.MULTILINE)
        return {int(number): tuple(fields) for number, *fields in rows}

    files, functions = (table(title, '"(.*)"$') for title in ("FileNames", "FunctionNames"))
    locations = table("FileLocations", r"\{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)")
    frames = {}
    for number, (location, parent) in table("StackFrames", r"\{file_location_id=(\d+) parent_frame_id=(\d+)").items():
        file, function, line = map(int, locations[int(location)])
        place = re.sub(r".*/(?=dctps_jax/\w|optax/|flax/|benchmarks/)", "", files[file][0])
        # The parent is written with one added: a frame without one names itself as the first.
        frames[number] = (f"{place}:{line} {functions[function][0]}", int(parent) - 1)
    return frames


def _group(hero: Instruction, opcodes: set[str], frames: list[str]) -> str:
    if hero.opcode.removesuffix("-start") in COLLECTIVES:
        return "collectives"
    if frames and "dctps_jax/kernels.py" in frames[0]:
        return "making kernels"  # all layers are called from there; here it is the place itself
    by_place = next((group for group, pattern in PLACES if any(re.search(pattern, f) for f in frames)), "other")
    if hero.opcode in ("convolution", "dot"):
        if by_place in ("data and augmentation", "making kernels", "gathers and scatters"):
            return by_place
        labels = re.search(r"dim_labels=(\w+)_(\w+)->", hero.text)
        if "transpose(" not in hero.text:
            return "convolutions forward"
        return "convolutions to kernels" if labels and labels[1][0] == "f" else "convolutions to inputs"
    if by_place == "data and augmentation":
        return by_place
    if opcodes & {"gather", "scatter"}:
        return "gathers and scatters"
    plain = opcodes - {"fusion", "parameter", "bitcast", "tuple", "get-tuple-element", "constant"}
    if plain <= {"copy", "copy-start", "transpose"}:
        return "copies"
    return by_place


def _place(frames: list[str], hero: Instruction) -> str:
    ours = [frame for frame in frames if frame.startswith(("dctps_jax/", "optax/"))]
    name = re.search(r'op_name="([^"]*)"', hero.text)
    last = name[1].rpartition("/")[2] if name else hero.opcode
    return f"{(ours or frames or [''])[0]} {last}".strip()
