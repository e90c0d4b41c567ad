"""Checks requirements.lock for known advisories, with pip-audit in its own environment: make audit"""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"


def main() -> None:
    command = ["-m", "pip_audit", "--requirement", str(LOCK), "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        sys.exit(f"Nothing was audited: pip-audit could not ask for advisories ({reason}). It needs a network.")
    skipped = [each["name"] for each in packages if "skip_reason" in each]
    found = [(each, advisory) for each in packages for advisory in each.get("vulns", [])]
    for package, advisory in found:
        fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {advisory['id']}, mended in {fixed}")
    if len(skipped) == len(packages):
        sys.exit("Nothing was audited: the index that is reached from here has no advisories.")
    print(f"{len(packages) - len(skipped)} packages audited, {len(found)} advisories")
    if skipped:
        print(f"not audited, for the index does not know them: {', '.join(skipped)}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
