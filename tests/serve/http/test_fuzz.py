"""Whatever the schema allows, and what it does not: never a 5xx, always what is documented."""

import base64
import os

import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.checks import positive_data_acceptance

from tests.serve.api import photo, stub_app

EXAMPLES = int(os.environ.get("EXAMPLES", "15"))
"""For each operation; `make fuzz` plays 500."""

# A string that claims to be a photo mostly is one, so that fuzzing gets past the decoder.
_photos = st.builds(photo, st.integers(0, 50), st.integers(1, 40), st.integers(1, 40))
_encoded = _photos.map(lambda data: base64.b64encode(data).decode())
schemathesis.openapi.format("byte", st.one_of(_encoded, st.text(max_size=20)))
schemathesis.openapi.format("binary", st.one_of(_photos, st.binary(max_size=50)))
schema = schemathesis.openapi.from_asgi("/openapi.json", stub_app())


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Headers that nobody asked for are ignored, as HTTP has it, not refused."""
    return not any("unknown-property" in name.lower() for name in case.headers or {})


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_every_operation(case: schemathesis.Case) -> None:
    # What the schema allows may still be refused: sliders that this server has not, scales beyond
    # a slider's range, bytes that are no photo.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
