"""`pip-audit` of what is installed here, where it can: without it, or without a network, one line and success.

Known vulnerabilities of dependencies end with 1. They are looked up at pypi.org, so a machine that is offline learns
nothing new; it never waits longer than a minute for that.
"""

import importlib.util
import subprocess
import sys

_SECONDS = 60
_OFFLINE = ("ConnectionError", "ConnectTimeout", "ServiceError", "Max retries exceeded", "Temporary failure in name")


def main() -> int:
    """Audit, and say how it went."""
    if importlib.util.find_spec("pip_audit") is None:
        print("audit: skipped, pip-audit is not installed (pip install pip-audit)")
        return 0
    command = [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        print(f"audit: skipped, no answer within {_SECONDS} s")
        return 0
    if done.returncode and any(word in done.stderr for word in _OFFLINE):
        print("audit: skipped, the list of vulnerabilities cannot be reached")
        return 0
    print(f"{done.stdout}{done.stderr}".strip() or "audit: nothing known against what is installed")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
