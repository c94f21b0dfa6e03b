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
