"""What msgspec raises for bytes that are not the JSON that was expected.

Text that isn't UTF-8 is none of its own errors, which is easily forgotten.
"""

from __future__ import annotations

import msgspec

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
