"""Writes schemas/avro/fingerprints.json from the kept schema versions.

Only for versions that were never released: a released one must not change.
"""

from __future__ import annotations

import json
from pathlib import Path

import schemas
from schemas.codec import schema_versions


def main() -> None:
    """Freezes every version's fingerprint."""
    found = {
        f"{name}/v{v.version}": v.fingerprint.hex()
        for name, versions in sorted(schema_versions().items())
        for v in versions
    }
    target = Path(schemas.__file__).parent / "avro" / "fingerprints.json"
    target.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
