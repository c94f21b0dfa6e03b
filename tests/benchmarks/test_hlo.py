"""What is read out of the text of a compiled program."""

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "hlo.py"
PROGRAM = """
%body (carry: (s32[], f32[8])) -> (s32[], f32[8]) {
  %carry = (s32[], f32[8]) parameter(0)
  %slow = f32[8] negate(%carry), backend_config={"estimated_cycles":"100"}
  ROOT %next = (s32[], f32[8]) tuple(%carry, %slow)
}

%condition (state: (s32[], f32[8])) -> pred[] {
  %limit = s32[] constant(128)
  %state = (s32[], f32[8]) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  ROOT %goes_on = pred[] compare(%count, LIMIT), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8] parameter(0)
  %loop = (s32[], f32[8]) while(%x), condition=%condition, body=%bodyNOTE
  ROOT %result = f32[8] get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope="module")
def hlo():
    spec = importlib.util.spec_from_file_location("hlo", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hlo"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("limit", "note", "rounds"),
    [("%limit", "", 128), ("%limit", ', backend_config={"known_trip_count":{"n":"50"}}', 50), ("%count", "", None)],
)
def test_a_loop_counts_as_often_as_it_goes_round(hlo, limit, note, rounds):
    program = hlo.Program(PROGRAM.replace("LIMIT", limit).replace("NOTE", note))
    if rounds is None:
        with pytest.raises(ValueError, match="rounds of the loop loop is not known"):
            program.operations()
        return
    cycles = {operation.opcode: operation.cycles for operation in program.operations()}
    assert cycles["negate"] == 100 * rounds


CONVOLUTION = """
%body (carry: f32[2,4,4,8]) -> f32[2,8,8,16] {
  %x = f32[2,4,4,8] parameter(0)
  %k = f32[3,3,8,16] parameter(1)
  ROOT %y = f32[2,SIZE,SIZE,16] convolution(%x, %k), window={WINDOW}, dim_labels=b01f_01io->b01f
}

%condition (state: f32[2,4,4,8]) -> pred[] {
  %limit = s32[] constant(3)
  %count = s32[] parameter(0)
  ROOT %goes_on = pred[] compare(%count, %limit), direction=LT
}

ENTRY %main (x: f32[2,4,4,8]) -> f32[2,8,8,16] {
  %x = f32[2,4,4,8] parameter(0)
  ROOT %loop = f32[2,8,8,16] while(%x), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(
    ("size", "window", "along"),
    [
        (2, "size=3x3", 2 * 3),
        (4, "size=3x3 pad=1_1x1_1", 4 * 3 - 2),
        (2, "size=3x3 stride=2x2 pad=0_1x0_1", 2 * 3 - 1),
        (7, "size=3x3 pad=1_1x1_1 lhs_dilate=2x2", 10),  # 4 outputs see one input, 3 see two
        (4, "size=3x3 pad=2_2x2_2 rhs_dilate=2x2", 8),  # each output sees two of four inputs
    ],
)
def test_products_with_padding_and_with_zeros_between_inputs_are_no_flops(hlo, size, window, along):
    """Of a convolution in the body of a loop, too."""
    program = hlo.Program(CONVOLUTION.replace("SIZE", str(size)).replace("WINDOW", window))
    (convolution,) = [operation for operation in program.operations() if operation.opcode == "convolution"]
    assert convolution.flops == 3 * 2 * 2 * 8 * 16 * along**2
